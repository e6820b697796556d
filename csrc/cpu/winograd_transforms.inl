// The 1-D transforms of Winograd's algorithm on vectors of channels, in the namespace CONVGRU_ISA.
// docs/cpu.md derives the matrices.
#pragma once
#include "simd.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// The 1-D transforms of F(kTile, kKernel): B^T of the input, G of the weight, A^T of the output, A of the
// output's gradient, G^T of the weight's. docs/cpu.md derives the matrices.
//
// The input's and the output's transform are in kInputParts and kOutputParts: of two dimensions the second is
// applied to what one part of the first has left, which then fits the registers. input<part>(get, put) reads
// element i by get(i) and hands over by put(i, value) those elements i whose input_part(i) is the part; so
// does output. The others read and write vectors that are `step` apart.
//
// input_edge is for the tile at the edge of which only some outputs count: its first used_points
// (convolution.h) elements.
template <int kTile, int kKernel>
struct Transform;

template <class Axis>
inline void input_in_place(FloatVec* d, int step);

// An axis along which the kernel does not extend.
template <>
struct Transform<1, 1> {
  static constexpr int kInputs = 1;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int input_part(int) { return 0; }
  static constexpr int output_part(int) { return 0; }
  template <int, class Get, class Put>
  static CONVGRU_INLINE void input(const Get& get, const Put& put) {
    put(0, get(0));
  }
  static void input_edge(int, FloatVec*, int) {}
  template <int, class Get, class Put>
  static CONVGRU_INLINE void output(const Get& get, const Put& put) {
    put(0, get(0));
  }
  static void weight(const FloatVec* g, int, FloatVec* u, int) { u[0] = g[0]; }
  static void output_gradient(const FloatVec* y, int, FloatVec* u, int) { u[0] = y[0]; }
  static void weight_gradient(const FloatVec* m, int, FloatVec* g, int) { g[0] = m[0]; }
};

// Points 0, 1, -1, -2, 1/2, infinity.
template <>
struct Transform<4, 3> {
  static constexpr int kInputs = 6;
  static constexpr int kInputParts = 2, kOutputParts = 2;
  static constexpr int input_part(int i) { return i == 0 || i == 5; }
  static constexpr int output_part(int i) { return i % 2; }

  template <int kPart, class Get, class Put>
  static CONVGRU_INLINE void input(const Get& get, const Put& put) {
    const FloatVec d1 = get(1), d2 = get(2), d3 = get(3), d4 = get(4);
    const FloatVec s = d3 - d1, t = d4 - d2;
    if constexpr (kPart == 0) {
      put(1, fma_vec(splat(2.5f), d3, fma_vec(splat(0.5f), d2, d4 - d1)));
      put(2, fma_vec(splat(-2.5f), d2, fma_vec(splat(0.5f), d3, d4 + d1)));
      put(3, fma_vec(splat(-0.5f), s, t));
      put(4, fma_vec(splat(2.0f), s, t));
    } else {
      put(0, fma_vec(splat(1.5f), s, t + (get(0) - d2)));
      put(5, fma_vec(splat(1.5f), t, (get(5) - d3) - s));
    }
  }

  static void input_edge(int outputs, FloatVec* d, int step) {
    const FloatVec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    if (outputs == 1) {
      d[0] = d0 - d2;
      d[step] = splat(1.5f) * (d2 + d1);
      d[2 * step] = splat(1.5f) * (d1 - d2);
    } else if (outputs == 2) {
      d[0] = fma_vec(splat(0.5f), d1 - d3, d0 - d2);
      d[step] = fma_vec(splat(0.5f), d3, fma_vec(splat(1.5f), d2, d1));
      d[2 * step] = fma_vec(splat(-1.5f), d3 + d2, splat(3.0f) * d1);
      d[3 * step] = splat(-2.5f) * (d3 - d1);
    } else {
      input_in_place<Transform>(d, step);
    }
  }

  static void weight(const FloatVec* g, int step, FloatVec* u, int u_step) {
    const FloatVec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const FloatVec third = splat(1.0f / 3);
    u[0] = g0;
    u[u_step] = (g0 + g2 + g1) * third;
    u[2 * u_step] = (g1 - (g0 + g2)) * third;
    u[3 * u_step] = fma_vec(splat(4.0f), g2, fma_vec(splat(-2.0f), g1, g0)) * splat(1.0f / 15);
    u[4 * u_step] = fma_vec(splat(4.0f), g0, fma_vec(splat(2.0f), g1, g2)) * splat(-4.0f / 15);
    u[5 * u_step] = g2;
  }

  template <int kPart, class Get, class Put>
  static CONVGRU_INLINE void output(const Get& get, const Put& put) {
    const FloatVec m1 = get(1), m2 = get(2), m3 = get(3), m4 = get(4);
    if constexpr (kPart == 0) {
      const FloatVec sum = m1 + m2;
      put(0, (get(0) + sum) + (m3 + m4));
      put(2, fma_vec(splat(4.0f), m3, fma_vec(splat(0.25f), m4, sum)));
    } else {
      const FloatVec difference = m1 - m2;
      put(1, fma_vec(splat(-2.0f), m3, fma_vec(splat(0.5f), m4, difference)));
      put(3, fma_vec(splat(-8.0f), m3, fma_vec(splat(0.125f), m4, difference)) + get(5));
    }
  }

  static void output_gradient(const FloatVec* y, int step, FloatVec* u, int u_step) {
    const FloatVec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const FloatVec even = y0 + y2, odd = y1 + y3;
    u[0] = y0;
    u[u_step] = even + odd;
    u[2 * u_step] = even - odd;
    u[3 * u_step] = fma_vec(splat(-2.0f), y1, y0) + fma_vec(splat(-8.0f), y3, splat(4.0f) * y2);
    u[4 * u_step] = fma_vec(splat(0.5f), y1, y0) + fma_vec(splat(0.125f), y3, splat(0.25f) * y2);
    u[5 * u_step] = y3;
  }

  static void weight_gradient(const FloatVec* m, int step, FloatVec* g, int g_step) {
    const FloatVec third = splat(1.0f / 3);
    const FloatVec sum = (m[step] + m[2 * step]) * third, difference = (m[step] - m[2 * step]) * third;
    const FloatVec m3 = splat(1.0f / 15) * m[3 * step], m4 = splat(4.0f / 15) * m[4 * step];
    g[0] = (m[0] + difference) + fma_vec(splat(-4.0f), m4, m3);
    g[g_step] = fma_vec(splat(-2.0f), m3 + m4, sum);
    g[2 * g_step] = (m[5 * step] + difference) + fma_vec(splat(4.0f), m3, -m4);
  }
};

// Points 0, 1, -1, infinity.
template <>
struct Transform<2, 3> {
  static constexpr int kInputs = 4;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int input_part(int) { return 0; }
  static constexpr int output_part(int) { return 0; }
  template <int, class Get, class Put>
  static CONVGRU_INLINE void input(const Get& get, const Put& put) {
    const FloatVec d1 = get(1), d2 = get(2);
    put(0, get(0) - d2);
    put(1, d1 + d2);
    put(2, d2 - d1);
    put(3, get(3) - d1);
  }

  static void input_edge(int, FloatVec* d, int step) { input_in_place<Transform>(d, step); }

  template <int, class Get, class Put>
  static CONVGRU_INLINE void output(const Get& get, const Put& put) {
    const FloatVec m1 = get(1), m2 = get(2);
    put(0, get(0) + (m1 + m2));
    put(1, (m1 - m2) + get(3));
  }

  static void weight(const FloatVec* g, int step, FloatVec* u, int u_step) {
    const FloatVec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const FloatVec half = splat(0.5f);
    u[0] = g0;
    u[u_step] = ((g0 + g2) + g1) * half;
    u[2 * u_step] = ((g0 + g2) - g1) * half;
    u[3 * u_step] = g2;
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
  static constexpr int kInputs = 8;
  static constexpr int kInputParts = 1, kOutputParts = 1;
  static constexpr int input_part(int) { return 0; }
  static constexpr int output_part(int) { return 0; }
  template <int, class Get, class Put>
  static CONVGRU_INLINE void input(const Get& get, const Put& put) {
    const FloatVec d1 = get(1), d2 = get(2), d3 = get(3), d4 = get(4), d5 = get(5), d6 = get(6);
    const FloatVec even1 = fma_vec(splat(-4.25f), d4, d2 + d6), odd1 = fma_vec(splat(-4.25f), d3, d1 + d5);
    const FloatVec even2 = fma_vec(splat(-1.25f), d4, fma_vec(splat(0.25f), d2, d6));
    const FloatVec odd2 = fma_vec(splat(2.0f), d5, fma_vec(splat(-2.5f), d3, splat(0.5f) * d1));
    const FloatVec even3 = fma_vec(splat(-5.0f), d4, fma_vec(splat(4.0f), d2, d6));
    const FloatVec odd3 = fma_vec(splat(0.5f), d5, fma_vec(splat(-2.5f), d3, splat(2.0f) * d1));
    put(0, fma_vec(splat(5.25f), d4 - d2, get(0) - d6));
    put(1, even1 + odd1);
    put(2, even1 - odd1);
    put(3, even2 + odd2);
    put(4, even2 - odd2);
    put(5, even3 + odd3);
    put(6, even3 - odd3);
    put(7, fma_vec(splat(5.25f), d3 - d5, get(7) - d1));
  }

  static void input_edge(int, FloatVec* d, int step) { input_in_place<Transform>(d, step); }

  template <int, class Get, class Put>
  static CONVGRU_INLINE void output(const Get& get, const Put& put) {
    const FloatVec m1 = get(1), m2 = get(2), m3 = get(3), m4 = get(4), m5 = get(5), m6 = get(6);
    const FloatVec sum1 = m1 + m2, difference1 = m1 - m2, sum2 = m3 + m4, difference2 = m3 - m4;
    const FloatVec sum3 = m5 + m6, difference3 = m5 - m6;
    put(0, (get(0) + sum1) + (sum2 + sum3));
    put(1, fma_vec(splat(2.0f), difference2, fma_vec(splat(0.5f), difference3, difference1)));
    put(2, fma_vec(splat(4.0f), sum2, fma_vec(splat(0.25f), sum3, sum1)));
    put(3, fma_vec(splat(8.0f), difference2, fma_vec(splat(0.125f), difference3, difference1)) + get(7));
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

// Calls f(0), ..., f(kParts-1) with the parts as constants.
template <int kParts, class F>
CONVGRU_INLINE void for_parts(const F& f) {
  [&]<int... kPart>(std::integer_sequence<int, kPart...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, kPart>{}), ...);
  }(std::make_integer_sequence<int, kParts>{});
}

template <class Axis>
inline void input_in_place(FloatVec* d, int step) {
  FloatVec from[8];
  for (int i = 0; i < Axis::kInputs; ++i) from[i] = d[i * step];
  for_parts<Axis::kInputParts>([&](auto part) {
    Axis::template input<part>(
        [&](int i) { return from[i]; }, [&](int i, FloatVec value) { d[i * step] = value; });
  });
}

// B^T d B of an input of kHeight x kWidth: get(a, b) reads an element, put(a, b, value) takes one of the
// result.
template <class Rows, class Columns, int kHeight, int kWidth, class Get, class Put>
CONVGRU_INLINE void transform_input(const Get& get, const Put& put) {
  for_parts<Rows::kInputParts>([&](auto part) __attribute__((always_inline)) {
    FloatVec d[kHeight][kWidth];
#pragma GCC unroll 8
    for (int b = 0; b < kWidth; ++b)
      Rows::template input<part>(
          [&](int a) __attribute__((always_inline)) { return get(a, b); },
          [&](int a, FloatVec value) __attribute__((always_inline)) { d[a][b] = value; });
#pragma GCC unroll 8
    for (int a = 0; a < kHeight; ++a) {
      if (Rows::input_part(a) != part) continue;
      for_parts<Columns::kInputParts>([&](auto column_part) __attribute__((always_inline)) {
        Columns::template input<column_part>(
            [&](int b) __attribute__((always_inline)) { return d[a][b]; },
            [&](int b, FloatVec value) __attribute__((always_inline)) { put(a, b, value); });
      });
    }
  });
}

// B^T d B for a tile of which rows x columns outputs count: its used_h x used_w elements, put as they are put
// by transform_input.
template <class Rows, class Columns, int kHeight, int kWidth, class Get, class Put>
inline void transform_input_edge(
    int64_t rows, int64_t columns, int used_h, int used_w, const Get& get, const Put& put) {
  FloatVec d[kHeight * kWidth];
  for (int a = 0; a < kHeight; ++a)
    for (int b = 0; b < kWidth; ++b) d[kWidth * a + b] = get(a, b);
  for (int b = 0; b < kWidth; ++b) Rows::input_edge(rows, d + b, kWidth);
  for (int a = 0; a < used_h; ++a) {
    Columns::input_edge(columns, d + kWidth * a, 1);
    for (int b = 0; b < used_w; ++b) put(a, b, d[kWidth * a + b]);
  }
}

// A^T m A to kTileH x kTileW sums, as transform_input; kWidth: of m.
template <class Rows, class Columns, int kTileH, int kTileW, int kWidth, class Get, class Put>
CONVGRU_INLINE void transform_output(const Get& get, const Put& put) {
  for_parts<Rows::kOutputParts>([&](auto part) __attribute__((always_inline)) {
    FloatVec y[kTileH][kWidth];
#pragma GCC unroll 8
    for (int b = 0; b < kWidth; ++b)
      Rows::template output<part>(
          [&](int a) __attribute__((always_inline)) { return get(a, b); },
          [&](int a, FloatVec value) __attribute__((always_inline)) { y[a][b] = value; });
#pragma GCC unroll 8
    for (int a = 0; a < kTileH; ++a) {
      if (Rows::output_part(a) != part) continue;
      for_parts<Columns::kOutputParts>([&](auto column_part) __attribute__((always_inline)) {
        Columns::template output<column_part>(
            [&](int b) __attribute__((always_inline)) { return y[a][b]; },
            [&](int b, FloatVec value) __attribute__((always_inline)) { put(a, b, value); });
      });
    }
  });
}

}  // namespace
}  // namespace convgru::cpu::CONVGRU_ISA
