// The element maths of the GRU gates, forward and derivative side by side, for every native kernel, host and
// device. Everything has internal linkage: the CPU kernels compile this file once for each instruction set.
//
// F is a float, a vector of them or several vectors; what differs between these is in Lanes<F>.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CONVGRU_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CONVGRU_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace convgru {
namespace {

template <class F>
struct Lanes;

template <>
struct Lanes<float> {
  static CONVGRU_HOST_DEVICE float splat(float x) { return x; }

  // a*b + c, rounded once where the target has the instruction. The build forbids the compiler to contract by
  // itself, so that the vector body and the tail of a loop round alike and results do not depend on how work
  // is split. CONVGRU_FMA comes from the files of the instruction sets: before GCC 13 __FMA__ does not follow
  // a target pragma.
  static CONVGRU_HOST_DEVICE float fma(float a, float b, float c) {
#if defined(CONVGRU_FMA) || defined(__ARM_FEATURE_FMA) || defined(__CUDA_ARCH__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
  }

  // A NaN passes through.
  static CONVGRU_HOST_DEVICE float clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
  }

  // The positive float of mantissa 1 whose exponent's bits are the lowest of x.
  static CONVGRU_HOST_DEVICE float exponent(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
  }

  // y, but 0 where x < bound.
  static CONVGRU_HOST_DEVICE float zero_below(float bound, float x, float y) { return x < bound ? 0.0f : y; }
};

template <class F>
CONVGRU_HOST_DEVICE F fma(F a, F b, F c) {
  return Lanes<F>::fma(a, b, c);
}

template <class F>
CONVGRU_HOST_DEVICE F clamp(F x, float low, float high) {
  return Lanes<F>::clamp(x, Lanes<F>::splat(low), Lanes<F>::splat(high));
}

template <class F>
struct ExpParts {
  F expm1;  // exp(r) - 1 for the remainder r in [-ln2/2, ln2/2]
  F scale;  // 2^n
};

// exp(kFactor * x) = scale * (expm1 + 1) for |kFactor * x| <= 87, kFactor a power of two or its negative:
// kFactor * x = n ln2 + r, expm1 = r * p(r) with the polynomial of degree 5 and p(0) = 1 that has the least
// relative error on [-ln2/2, ln2/2], 1.7e-8. All is computed for r / kFactor, which changes no digit.
template <int kFactor, class F>
CONVGRU_HOST_DEVICE ExpParts<F> exp_parts(F x) {
  using L = Lanes<F>;
  constexpr float f = kFactor;
  constexpr float kLog2E = 1.44269504f * f;
  constexpr float kLn2High = 0.693359375f / f;  // 9 bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f / f;
  // Adding 1.5 * 2^23 rounds to an integer, kept in the low mantissa bits: here the exponent's bits for n.
  constexpr float kRound = 12582912.0f + 127;
  const F shifted = fma(x, L::splat(kLog2E), L::splat(kRound));
  const F n = shifted - kRound;
  const F r = fma(n, L::splat(-kLn2Low), fma(n, L::splat(-kLn2High), x));
  F p = L::splat(1.38825155e-3f * (f * f * f * f * f * f));
  p = fma(p, r, L::splat(8.36655218e-3f * (f * f * f * f * f)));
  p = fma(p, r, L::splat(4.16672006e-2f * (f * f * f * f)));
  p = fma(p, r, L::splat(0.166665435f * (f * f * f)));
  p = fma(p, r, L::splat(0.49999997f * (f * f)));
  p = fma(p, r, L::splat(f));
  return {p * r, L::exponent(shifted)};
}

// 1 / (1 + exp(-x)), within 2.5 ulp from -87 on (tests/test_native_math.py measures it); 0 below -104, where
// the exact value rounds to it.
template <class F>
CONVGRU_HOST_DEVICE F sigmoid(F x) {
  const ExpParts<F> e = exp_parts<-1>(clamp(x, -87.0f, 87.0f));
  const F s = 1.0f / (1.0f + fma(e.scale, e.expm1, e.scale));
  return Lanes<F>::zero_below(-104.0f, x, s);
}

// expm1(2x) / (expm1(2x) + 2), accurate for small x too; beyond |x| = 10 the result is +-1 in fp32.
template <class F>
CONVGRU_HOST_DEVICE F tanh(F x) {
  const ExpParts<F> e = exp_parts<2>(clamp(x, -10.0f, 10.0f));
  const F m = fma(e.scale, e.expm1, e.scale - 1.0f);
  return m / (m + 2.0f);
}

template <>
CONVGRU_HOST_DEVICE double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
template <>
CONVGRU_HOST_DEVICE double tanh(double x) {
  return std::tanh(x);
}

// Derivatives in terms of the function's value.
template <class F>
CONVGRU_HOST_DEVICE F sigmoid_derivative(F s) {
  return s * (1 - s);
}
template <class F>
CONVGRU_HOST_DEVICE F tanh_derivative(F n) {
  return 1 - n * n;
}

// max(x, 0). A NaN passes through.
template <class F>
CONVGRU_HOST_DEVICE F relu(F x) {
  return x < F{} ? F{} : x;
}

// The gradient g of n as that of its pre-activation: n = tanh of that, or relu.
template <class F>
CONVGRU_HOST_DEVICE F candidate_gradient(bool is_relu, F g, F n) {
  if (is_relu) return n <= F{} ? F{} : g;
  return g * tanh_derivative(n);
}

// (1-w) from + w to: h' = blend(h, n, z) in "gru-rcn", blend(n, h, z) in "cudnn".
template <class F>
CONVGRU_HOST_DEVICE F blend(F from, F to, F w) {
  return (1 - w) * from + w * to;
}

}  // namespace
}  // namespace convgru
