// Vectors of the instruction set that a file is compiled for: CONVGRU_VECTOR_BYTES in the namespace
// CONVGRU_ISA. Storage types are widened when loaded and rounded to nearest even when stored.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../gru_math.h"
#include "memory.h"
#include "scalar.h"

namespace convgru {
namespace cpu::CONVGRU_ISA {
namespace {

typedef float FloatVec __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));

// The vector of a compute type.
template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  using type = FloatVec;
};
template <>
struct VecOf<double> {
  using type = DoubleVec;
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int kLanes = CONVGRU_VECTOR_BYTES / sizeof(A);

// How many lanes of a vector count: all, or the first few at the end of a row.
struct Full {};
struct Partial {
  int count;
};

template <class A>
inline Vec<A> load_vec(const A* p) {
  Vec<A> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A>
inline void store_vec(A* p, Vec<A> v) {
  memcpy(p, &v, sizeof v);
}

// Stores to memory past the caches where a vector fills a cache line; stores_done after the last.
template <class A>
inline void store_past_cache(A* p, Vec<A> v) {
#if CONVGRU_VECTOR_BYTES == 64
  __m512i bits;
  memcpy(&bits, &v, sizeof bits);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
#else
  store_vec(p, v);
#endif
}
inline void stores_done() {
#if CONVGRU_VECTOR_BYTES == 64
  _mm_sfence();
#endif
}

inline FloatVec load_vec(const bfloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(CONVGRU_VECTOR_BYTES / 2)));
  typedef uint32_t Whole __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));
  Half half;
  memcpy(&half, p, sizeof half);
  const Whole bits = __builtin_convertvector(half, Whole) << 16;
  FloatVec v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
inline void store_vec(bfloat16* p, FloatVec v) {
  typedef uint16_t Half __attribute__((vector_size(CONVGRU_VECTOR_BYTES / 2)));
  typedef uint32_t Whole __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));
  Whole bits;
  memcpy(&bits, &v, sizeof v);
  const Whole rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Whole quiet = Whole{} + 0x7FC0u;
  const Half half = __builtin_convertvector(v != v ? quiet : rounded, Half);
  memcpy(p, &half, sizeof half);
}

inline FloatVec load_vec(const float16* p) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  FloatVec v;
  for (int lane = 0; lane < kLanes<float>; ++lane) v[lane] = static_cast<float>(p[lane]);
  return v;
#endif
}
inline void store_vec(float16* p, FloatVec v) {
#if CONVGRU_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif CONVGRU_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) p[lane] = static_cast<float16>(v[lane]);
#endif
}

template <class T>
inline Vec<acc_t<T>> load(const T* p, Full) {
  return load_vec(p);
}
template <class T>
inline Vec<acc_t<T>> load(const T* p, Partial lanes) {
  T row[kLanes<acc_t<T>>] = {};
  memcpy(row, p, lanes.count * sizeof(T));
  return load_vec(row);
}
template <class T>
inline void store(T* p, Vec<acc_t<T>> v, Full) {
  store_vec(p, v);
}
template <class T>
inline void store(T* p, Vec<acc_t<T>> v, Partial lanes) {
  T row[kLanes<acc_t<T>>];
  store_vec(row, v);
  memcpy(p, row, lanes.count * sizeof(T));
}

// Calls f(first, lanes) for the vectors of `count` elements of a row.
template <class A, class F>
inline __attribute__((always_inline)) void for_lanes(int64_t count, const F& f) {
  int64_t first = 0;
  for (; first + kLanes<A> <= count; first += kLanes<A>) f(first, Full{});
  if (first < count) f(first, Partial{static_cast<int>(count - first)});
}

// (Of generic code: 0 + x would be an addition, for it turns -0 into 0; x - 0 is x.)
inline FloatVec splat(float x) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_set1_ps(x);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_set1_ps(x);
#else
  return x - FloatVec{};
#endif
}
inline DoubleVec splat(double x) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_set1_pd(x);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_set1_pd(x);
#else
  return x - DoubleVec{};
#endif
}
inline FloatVec fma_vec(FloatVec a, FloatVec b, FloatVec c) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline DoubleVec fma_vec(DoubleVec a, DoubleVec b, DoubleVec c) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_fmadd_pd(a, b, c);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// Several vectors, on all of which an operation is done before the next: a chain of dependent operations, as
// long as that of an exponential, leaves a processor idle unless other chains are at hand.
template <class V, int kCount>
struct Group {
  using Element = std::decay_t<decltype(V{}[0])>;
  V v[kCount];

  template <class F>
  static CONVGRU_INLINE Group each(const F& f) {
    Group result;
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) result.v[i] = f(i);
    return result;
  }

#define CONVGRU_OPERATOR(op)                                    \
  friend CONVGRU_INLINE Group operator op(Group a, Group b) {   \
    return each([&](int i) { return a.v[i] op b.v[i]; });       \
  }                                                             \
  friend CONVGRU_INLINE Group operator op(Group a, Element b) { \
    return each([&](int i) { return a.v[i] op b; });            \
  }                                                             \
  friend CONVGRU_INLINE Group operator op(Element a, Group b) { \
    return each([&](int i) { return a op b.v[i]; });            \
  }
  CONVGRU_OPERATOR(+)
  CONVGRU_OPERATOR(-)
  CONVGRU_OPERATOR(*)
  CONVGRU_OPERATOR(/)
#undef CONVGRU_OPERATOR

  // The same vector for each.
  friend CONVGRU_INLINE Group operator+(Group a, V b) {
    return each([&](int i) { return a.v[i] + b; });
  }
};

// y[i] += the sum of the lanes of v[i], for kCount vectors.
template <int kCount, class A>
CONVGRU_INLINE void add_lane_sums(const Vec<A>* v, A* y) {
#if CONVGRU_VECTOR_BYTES == 64
  if constexpr (kCount == 4 && sizeof(A) == sizeof(float)) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512 quarters =  // each of sums of the four vectors
        _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
    const __m256 halves =
        _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), sums));
    return;
  }
#endif
  for (int i = 0; i < kCount; ++i) {
    A parts[kLanes<A>];
    store_vec(parts, v[i]);
    for (int half = kLanes<A> / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    y[i] += parts[0];
  }
}

// Scratch memory of a thread, kept from call to call.
template <class A>
inline A* scratch(int64_t count) {
  static thread_local struct Memory {
    void* data = nullptr;
    size_t bytes = 0;
    ~Memory() { deallocate(data); }
  } memory;
  const size_t bytes = count * sizeof(A);
#if defined(__SANITIZE_ADDRESS__)
  const bool fits = bytes == memory.bytes;  // its end is guarded
#else
  const bool fits = bytes <= memory.bytes;
#endif
  if (!fits) {
    deallocate(memory.data);
    memory.data = nullptr;
    memory.bytes = 0;
    memory.data = allocate(bytes);
    memory.bytes = bytes;
  }
  return static_cast<A*>(memory.data);
}

}  // namespace
}  // namespace cpu::CONVGRU_ISA

namespace {

template <>
struct Lanes<cpu::CONVGRU_ISA::FloatVec> {
  using F = cpu::CONVGRU_ISA::FloatVec;
  static CONVGRU_HOST_DEVICE F splat(float x) { return cpu::CONVGRU_ISA::splat(x); }
  static CONVGRU_HOST_DEVICE F fma(F a, F b, F c) { return cpu::CONVGRU_ISA::fma_vec(a, b, c); }
  // Of a comparison with a NaN the instructions return the second operand.
  static CONVGRU_HOST_DEVICE F clamp(F x, F low, F high) {
#if CONVGRU_VECTOR_BYTES == 64
    return _mm512_min_ps(high, _mm512_max_ps(low, x));
#elif CONVGRU_VECTOR_BYTES == 32
    return _mm256_min_ps(high, _mm256_max_ps(low, x));
#else
    x = x < low ? low : x;
    return x > high ? high : x;
#endif
  }
  static CONVGRU_HOST_DEVICE F exponent(F x) {
    cpu::CONVGRU_ISA::IntVec bits;
    memcpy(&bits, &x, sizeof bits);
    bits <<= 23;
    F power;
    memcpy(&power, &bits, sizeof power);
    return power;
  }
  static CONVGRU_HOST_DEVICE F zero_below(float bound, F x, F y) { return x < splat(bound) ? F{} : y; }
};

template <class V, int n>
struct Lanes<cpu::CONVGRU_ISA::Group<V, n>> {
  using F = cpu::CONVGRU_ISA::Group<V, n>;
  using L = Lanes<V>;
  static CONVGRU_HOST_DEVICE F splat(float x) {
    return F::each([&](int) { return L::splat(x); });
  }
  static CONVGRU_HOST_DEVICE F fma(F a, F b, F c) {
    return F::each([&](int i) { return L::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static CONVGRU_HOST_DEVICE F clamp(F x, F low, F high) {
    return F::each([&](int i) { return L::clamp(x.v[i], low.v[i], high.v[i]); });
  }
  static CONVGRU_HOST_DEVICE F exponent(F x) {
    return F::each([&](int i) { return L::exponent(x.v[i]); });
  }
  static CONVGRU_HOST_DEVICE F zero_below(float bound, F x, F y) {
    return F::each([&](int i) { return L::zero_below(bound, x.v[i], y.v[i]); });
  }
};

template <class V, int n>
CONVGRU_HOST_DEVICE cpu::CONVGRU_ISA::Group<V, n> relu(cpu::CONVGRU_ISA::Group<V, n> x) {
  return cpu::CONVGRU_ISA::Group<V, n>::each([&](int i) { return relu(x.v[i]); });
}

template <>
inline cpu::CONVGRU_ISA::Group<cpu::CONVGRU_ISA::DoubleVec, 1> sigmoid(
    cpu::CONVGRU_ISA::Group<cpu::CONVGRU_ISA::DoubleVec, 1> x) {
  for (int lane = 0; lane < cpu::CONVGRU_ISA::kLanes<double>; ++lane)
    x.v[0][lane] = sigmoid<double>(x.v[0][lane]);
  return x;
}
template <>
inline cpu::CONVGRU_ISA::Group<cpu::CONVGRU_ISA::DoubleVec, 1> tanh(
    cpu::CONVGRU_ISA::Group<cpu::CONVGRU_ISA::DoubleVec, 1> x) {
  for (int lane = 0; lane < cpu::CONVGRU_ISA::kLanes<double>; ++lane)
    x.v[0][lane] = tanh<double>(x.v[0][lane]);
  return x;
}

}  // namespace
}  // namespace convgru
