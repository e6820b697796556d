// The 1-D transforms of Winograd's algorithm on vectors of channels, in the namespace CONVGRU_ISA.
// docs/cpu.md derives the matrices.
#pragma once
#include "simd.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// The 1-D transforms of F(kTile, kKernel), for vectors that are `step` apart: B^T of the input, G of the
// weight, A^T of the output, A of the output's gradient, G^T of the weight's. docs/cpu.md derives the
// matrices.
template <int kTile, int kKernel>
struct Transform;

// An axis along which the kernel does not extend.
template <>
struct Transform<1, 1> {
  static void input(FloatVec*, int) {}
  static void weight(const FloatVec* g, int, FloatVec* u, int) { u[0] = g[0]; }
  static void output(const FloatVec* m, int, FloatVec* y, int) { y[0] = m[0]; }
  static void output_gradient(const FloatVec* y, int, FloatVec* u, int) { u[0] = y[0]; }
  static void weight_gradient(const FloatVec* m, int, FloatVec* g, int) { g[0] = m[0]; }
};

// Points 0, 1, -1, 1/2, -2, infinity.
template <>
struct Transform<4, 3> {
  static void input(FloatVec* d, int step) {
    const FloatVec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
                   d5 = d[5 * step];
    const FloatVec s = d3 - d1, t = d4 - d2;
    d[0] = fma_vec(splat(1.5f), s, fma_vec(splat(-2.0f), d2, d0 + d4));
    d[step] = fma_vec(splat(2.5f), d3, fma_vec(splat(0.5f), d2, d4 - d1));
    d[2 * step] = fma_vec(splat(-2.5f), d2, fma_vec(splat(0.5f), d3, d4 + d1));
    d[3 * step] = fma_vec(splat(2.0f), s, t);
    d[4 * step] = fma_vec(splat(-0.5f), s, t);
    d[5 * step] = fma_vec(splat(1.5f), t, fma_vec(splat(-2.0f), d3, d5 + d1));
  }

  static void weight(const FloatVec* g, int step, FloatVec* u, int u_step) {
    const FloatVec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const FloatVec third = splat(1.0f / 3);
    u[0] = g0;
    u[u_step] = (g0 + g2 + g1) * third;
    u[2 * u_step] = (g1 - (g0 + g2)) * third;
    u[3 * u_step] = fma_vec(splat(4.0f), g0, fma_vec(splat(2.0f), g1, g2)) * splat(-4.0f / 15);
    u[4 * u_step] = fma_vec(splat(4.0f), g2, fma_vec(splat(-2.0f), g1, g0)) * splat(1.0f / 15);
    u[5 * u_step] = g2;
  }

  static void output(const FloatVec* m, int step, FloatVec* y, int y_step) {
    const FloatVec sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    const FloatVec m3 = m[3 * step], m4 = m[4 * step];
    y[0] = (m[0] + sum) + (m3 + m4);
    y[y_step] = fma_vec(splat(-2.0f), m4, fma_vec(splat(0.5f), m3, difference));
    y[2 * y_step] = fma_vec(splat(4.0f), m4, fma_vec(splat(0.25f), m3, sum));
    y[3 * y_step] = fma_vec(splat(-8.0f), m4, fma_vec(splat(0.125f), m3, difference)) + m[5 * step];
  }

  static void output_gradient(const FloatVec* y, int step, FloatVec* u, int u_step) {
    const FloatVec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const FloatVec even = y0 + y2, odd = y1 + y3;
    u[0] = y0;
    u[u_step] = even + odd;
    u[2 * u_step] = even - odd;
    u[3 * u_step] = fma_vec(splat(0.5f), y1, y0) + fma_vec(splat(0.125f), y3, splat(0.25f) * y2);
    u[4 * u_step] = fma_vec(splat(-2.0f), y1, y0) + fma_vec(splat(-8.0f), y3, splat(4.0f) * y2);
    u[5 * u_step] = y3;
  }

  static void weight_gradient(const FloatVec* m, int step, FloatVec* g, int g_step) {
    const FloatVec third = splat(1.0f / 3);
    const FloatVec sum = (m[step] + m[2 * step]) * third, difference = (m[step] - m[2 * step]) * third;
    const FloatVec m3 = splat(4.0f / 15) * m[3 * step], m4 = splat(1.0f / 15) * m[4 * step];
    g[0] = (m[0] + difference) + fma_vec(splat(-4.0f), m3, m4);
    g[g_step] = fma_vec(splat(-2.0f), m3 + m4, sum);
    g[2 * g_step] = (m[5 * step] + difference) + fma_vec(splat(4.0f), m4, -m3);
  }
};

// Points 0, 1, -1, infinity.
template <>
struct Transform<2, 3> {
  static void input(FloatVec* d, int step) {
    const FloatVec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    d[0] = d0 - d2;
    d[step] = d1 + d2;
    d[2 * step] = d2 - d1;
    d[3 * step] = d3 - d1;
  }

  static void weight(const FloatVec* g, int step, FloatVec* u, int u_step) {
    const FloatVec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const FloatVec half = splat(0.5f);
    u[0] = g0;
    u[u_step] = ((g0 + g2) + g1) * half;
    u[2 * u_step] = ((g0 + g2) - g1) * half;
    u[3 * u_step] = g2;
  }

  static void output(const FloatVec* m, int step, FloatVec* y, int y_step) {
    const FloatVec m1 = m[step], m2 = m[2 * step];
    y[0] = m[0] + (m1 + m2);
    y[y_step] = (m1 - m2) + m[3 * step];
  }

  static void output_gradient(const FloatVec* y, int step, FloatVec* u, int u_step) {
    const FloatVec y0 = y[0], y1 = y[step];
    u[0] = y0;
    u[u_step] = y0 + y1;
    u[2 * u_step] = y0 - y1;
    u[3 * u_step] = y1;
  }

  static void weight_gradient(const FloatVec* m, int step, FloatVec* g, int g_step) {
    const FloatVec half = splat(0.5f);
    const FloatVec sum = (m[step] + m[2 * step]) * half;
    g[0] = m[0] + sum;
    g[g_step] = (m[step] - m[2 * step]) * half;
    g[2 * g_step] = m[3 * step] + sum;
  }
};

// Points 0, 1, -1, 2, -2, 1/2, -1/2, infinity. What belongs to p and -p is computed as even part plus and
// minus odd part.
template <>
struct Transform<4, 5> {
  static void input(FloatVec* d, int step) {
    const FloatVec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    const FloatVec d4 = d[4 * step], d5 = d[5 * step], d6 = d[6 * step], d7 = d[7 * step];
    const FloatVec even1 = fma_vec(splat(-4.25f), d4, d2 + d6), odd1 = fma_vec(splat(-4.25f), d3, d1 + d5);
    const FloatVec even2 = fma_vec(splat(-1.25f), d4, fma_vec(splat(0.25f), d2, d6));
    const FloatVec odd2 = fma_vec(splat(2.0f), d5, fma_vec(splat(-2.5f), d3, splat(0.5f) * d1));
    const FloatVec even3 = fma_vec(splat(-5.0f), d4, fma_vec(splat(4.0f), d2, d6));
    const FloatVec odd3 = fma_vec(splat(0.5f), d5, fma_vec(splat(-2.5f), d3, splat(2.0f) * d1));
    d[0] = fma_vec(splat(5.25f), d4 - d2, d0 - d6);
    d[step] = even1 + odd1;
    d[2 * step] = even1 - odd1;
    d[3 * step] = even2 + odd2;
    d[4 * step] = even2 - odd2;
    d[5 * step] = even3 + odd3;
    d[6 * step] = even3 - odd3;
    d[7 * step] = fma_vec(splat(5.25f), d3 - d5, d7 - d1);
  }

  static void weight(const FloatVec* g, int step, FloatVec* u, int u_step) {
    const FloatVec g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step], g4 = g[4 * step];
    const FloatVec even1 = (g0 + g4) + g2, odd1 = g1 + g3;
    const FloatVec even2 = fma_vec(splat(16.0f), g4, fma_vec(splat(4.0f), g2, g0));
    const FloatVec odd2 = fma_vec(splat(8.0f), g3, splat(2.0f) * g1);
    const FloatVec even3 = fma_vec(splat(16.0f), g0, fma_vec(splat(4.0f), g2, g4));
    const FloatVec odd3 = fma_vec(splat(8.0f), g1, splat(2.0f) * g3);
    u[0] = g0;
    u[u_step] = (even1 + odd1) * splat(-2.0f / 9);
    u[2 * u_step] = (even1 - odd1) * splat(-2.0f / 9);
    u[3 * u_step] = (even2 + odd2) * splat(1.0f / 90);
    u[4 * u_step] = (even2 - odd2) * splat(1.0f / 90);
    u[5 * u_step] = (even3 + odd3) * splat(2.0f / 45);
    u[6 * u_step] = (even3 - odd3) * splat(2.0f / 45);
    u[7 * u_step] = g4;
  }

  static void output(const FloatVec* m, int step, FloatVec* y, int y_step) {
    const FloatVec sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const FloatVec sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    const FloatVec sum3 = m[5 * step] + m[6 * step], difference3 = m[5 * step] - m[6 * step];
    y[0] = (m[0] + sum1) + (sum2 + sum3);
    y[y_step] = fma_vec(splat(2.0f), difference2, fma_vec(splat(0.5f), difference3, difference1));
    y[2 * y_step] = fma_vec(splat(4.0f), sum2, fma_vec(splat(0.25f), sum3, sum1));
    y[3 * y_step] =
        fma_vec(splat(8.0f), difference2, fma_vec(splat(0.125f), difference3, difference1)) + m[7 * step];
  }

  static void output_gradient(const FloatVec* y, int step, FloatVec* u, int u_step) {
    const FloatVec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const FloatVec even1 = y0 + y2, odd1 = y1 + y3;
    const FloatVec even2 = fma_vec(splat(4.0f), y2, y0);
    const FloatVec odd2 = fma_vec(splat(8.0f), y3, splat(2.0f) * y1);
    const FloatVec even3 = fma_vec(splat(0.25f), y2, y0);
    const FloatVec odd3 = fma_vec(splat(0.125f), y3, splat(0.5f) * y1);
    u[0] = y0;
    u[u_step] = even1 + odd1;
    u[2 * u_step] = even1 - odd1;
    u[3 * u_step] = even2 + odd2;
    u[4 * u_step] = even2 - odd2;
    u[5 * u_step] = even3 + odd3;
    u[6 * u_step] = even3 - odd3;
    u[7 * u_step] = y3;
  }

  static void weight_gradient(const FloatVec* m, int step, FloatVec* g, int g_step) {
    const FloatVec ninths = splat(-2.0f / 9), small = splat(1.0f / 90), large = splat(2.0f / 45);
    const FloatVec sum1 = (m[step] + m[2 * step]) * ninths, difference1 = (m[step] - m[2 * step]) * ninths;
    const FloatVec sum2 = (m[3 * step] + m[4 * step]) * small,
                   difference2 = (m[3 * step] - m[4 * step]) * small;
    const FloatVec sum3 = (m[5 * step] + m[6 * step]) * large,
                   difference3 = (m[5 * step] - m[6 * step]) * large;
    g[0] = fma_vec(splat(16.0f), sum3, sum1 + sum2) + m[0];
    g[g_step] = fma_vec(splat(8.0f), difference3, fma_vec(splat(2.0f), difference2, difference1));
    g[2 * g_step] = fma_vec(splat(4.0f), sum2 + sum3, sum1);
    g[3 * g_step] = fma_vec(splat(8.0f), difference2, fma_vec(splat(2.0f), difference3, difference1));
    g[4 * g_step] = fma_vec(splat(16.0f), sum2, sum1 + sum3) + m[7 * step];
  }
};

}  // namespace
}  // namespace convgru::cpu::CONVGRU_ISA
