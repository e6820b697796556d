// The pointwise convolutions of bfloat16 images for x86-64 with AVX-512 and its bfloat16 products, which add
// up two products a lane in single precision (and take denormal factors for zero). Everything else of that
// instruction set is isa_avx512.cpp.
#if defined(__x86_64__)
#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

// GCC 12 warns of the undefined vectors inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define CONVGRU_ISA avx512_bf16
#define CONVGRU_FMA
#define CONVGRU_VECTOR_BYTES 64
#include "pointwise.inl"

namespace convgru::cpu::avx512_bf16 {
namespace {

constexpr int64_t kColumns = 32;  // bfloat16 elements of a vector, columns of a block
static_assert(kBlock<float> == kColumns);

inline __mmask32 first_lanes(int64_t count) {
  return count >= kColumns ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}
// The first elements of a row, zeros beyond.
inline __m512i load_row(const bfloat16* p, __mmask32 lanes) {
  return _mm512_maskz_loadu_epi16(lanes, p);
}
// sum + the products of pairs of neighbours
inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
// Two elements as neighbours.
inline uint32_t pair_of(const bfloat16* first, const bfloat16* second) {
  return first->bits | (second == nullptr ? 0 : uint32_t{second->bits} << 16);
}
inline __m512i broadcast(uint32_t pair) {
  return _mm512_set1_epi32(static_cast<int>(pair));
}

// Two rows of 32 columns of which the neighbours are a column's elements. The instructions interleave within
// 128 bits; in_order brings the sums of the columns back.
struct Pairs {
  __m512i low, high;
};
inline Pairs interleave(const bfloat16* first, const bfloat16* second, __mmask32 lanes) {
  const __m512i a = load_row(first, lanes);
  const __m512i b = second == nullptr ? _mm512_setzero_si512() : load_row(second, lanes);
  return {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)};
}
struct Columns {
  __m512 first, second;
};
inline Columns in_order(__m512 low, __m512 high) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  return {_mm512_permutex2var_ps(low, first, high), _mm512_permutex2var_ps(low, second, high)};
}

// What pointwise.inl asks for.
struct PairProducts {
  using X = bfloat16;
  static constexpr int kDotRows = 6, kDotOuts = 4, kRows = 14;

  static void copy_row(const bfloat16* from, int64_t channels, bfloat16* to) {
    memcpy(to, from, channels * sizeof *to);
  }

  template <int kRows, int kOuts>
  static void dot(const bfloat16* x, int64_t x_stride, const bfloat16* const* w, int64_t depth, float* y) {
    FloatVec sum[kRows][kOuts];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
      for (int o = 0; o < kOuts; ++o) sum[row][o] = FloatVec{};
    const auto add = [&](int64_t i, __mmask32 lanes) __attribute__((always_inline)) {
      __m512i right[kOuts];
      for (int o = 0; o < kOuts; ++o) {
        right[o] = load_row(w[o] + i, lanes);
        __builtin_prefetch(w[o] + i + 8 * kColumns);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const __m512i left = load_row(x + row * x_stride + i, lanes);
        for (int o = 0; o < kOuts; ++o) sum[row][o] = add_products(sum[row][o], left, right[o]);
      }
    };
    int64_t i = 0;
    for (; i + kColumns <= depth; i += kColumns) add(i, ~__mmask32{0});
    if (i < depth) add(i, first_lanes(depth - i));
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) add_lane_sums<kOuts, float>(sum[row], y + row * kColumns);
  }

  template <int kRows>
  static void outer(
      const bfloat16* x, int64_t x_stride, const bfloat16* w, int64_t w_stride, int64_t channels,
      int64_t depth, float* c) {
    const __mmask32 lanes = first_lanes(channels);
    __m512 low[kRows], high[kRows];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) low[row] = high[row] = _mm512_setzero_ps();
    for (int64_t i = 0; i < depth; i += 2) {
      const bool last = i + 1 == depth;
      const bfloat16* first = w + i * w_stride;
      const Pairs right = interleave(first, last ? nullptr : first + w_stride, lanes);
      __builtin_prefetch(first + kColumns);  // of the next block
      __builtin_prefetch(first + w_stride + kColumns);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const bfloat16* pair = x + row * x_stride + i;
        const __m512i left = broadcast(pair_of(pair, last ? nullptr : pair + 1));
        low[row] = add_products(low[row], left, right.low);
        high[row] = add_products(high[row], left, right.high);
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Columns sum = in_order(low[row], high[row]);
      float* target = c + row * kColumns;
      _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), sum.first));
      target += kColumns / 2;
      _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), sum.second));
    }
  }

  // [pairs of pixels][kRows]
  static void pack_rows(
      const bfloat16* grad, int64_t pixel_stride, int64_t pixels, int64_t rows, float* left) {
    for (int64_t pixel = 0; pixel < pixels; pixel += 2)
      for (int64_t row = 0; row < rows; ++row) {
        const bfloat16* first = grad + pixel * pixel_stride + row;
        const uint32_t pair = pair_of(first, pixel + 1 < pixels ? first + pixel_stride : nullptr);
        memcpy(left + pixel / 2 * kRows + row, &pair, sizeof pair);
      }
  }

  // [pairs of pixels], interleaved
  static void pack_columns(
      const bfloat16* x, int64_t pixel_stride, int64_t pixels, int64_t channels, float* panel) {
    const __mmask32 lanes = first_lanes(channels);
    for (int64_t pixel = 0; pixel < pixels; pixel += 2) {
      const bfloat16* first = x + pixel * pixel_stride;
      const Pairs pairs = interleave(first, pixel + 1 < pixels ? first + pixel_stride : nullptr, lanes);
      memcpy(panel + pixel / 2 * kColumns, &pairs, sizeof pairs);
    }
  }

  template <int kCount>
  static void gradient(
      int64_t pixels, const float* left, const float* x, int64_t channels, bfloat16* target,
      int64_t row_stride) {
    const __mmask32 lanes = first_lanes(channels);
    __m512 low[kCount], high[kCount];
#pragma GCC unroll 16
    for (int row = 0; row < kCount; ++row) low[row] = high[row] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < (pixels + 1) / 2; ++pair) {
      Pairs right;
      memcpy(&right, x + pair * kColumns, sizeof right);
#pragma GCC unroll 16
      for (int row = 0; row < kCount; ++row) {
        const __m512i factor = _mm512_castps_si512(_mm512_set1_ps(left[pair * kRows + row]));
        low[row] = add_products(low[row], factor, right.low);
        high[row] = add_products(high[row], factor, right.high);
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kCount; ++row) {
      const Columns sum = in_order(low[row], high[row]);
      const __m512i rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(sum.second, sum.first));
      _mm512_mask_storeu_epi16(target + row * row_stride, lanes, rounded);
    }
  }
};

}  // namespace

extern const PointwiseKernels<bfloat16> kBFloat16Pointwise = kPointwise<PairProducts, bfloat16>;

}  // namespace convgru::cpu::avx512_bf16
#endif
