// The kernels of winograd.h; compiled once for each instruction set, in the namespace CONVGRU_ISA, with
// vectors of CONVGRU_VECTOR_BYTES and products of CONVGRU_TILE_ROWS rows by two vectors, which fill the
// registers.
#include <cstdlib>
#include <memory>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "winograd.h"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

typedef float Vec __attribute__((vector_size(CONVGRU_VECTOR_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(CONVGRU_VECTOR_BYTES), aligned(4)));
constexpr int kLanes = CONVGRU_VECTOR_BYTES / 4;

inline Vec load_vec(const float* p) {
  return *reinterpret_cast<const UnalignedVec*>(p);
}
inline void store_vec(float* p, Vec v) {
  *reinterpret_cast<UnalignedVec*>(p) = v;
}
inline Vec broadcast(float x) {
  return Vec{} + x;
}
inline Vec fma_vec(Vec a, Vec b, Vec c) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Scratch memory of a thread, kept from call to call.
class Scratch {
 public:
  float* reserve(int64_t count) {
    if (count > count_) {
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64)));
      if (memory_ == nullptr) throw std::bad_alloc();
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t count_ = 0;
};

inline float* scratch(int64_t count) {
  static thread_local Scratch memory;
  return memory.reserve(count);
}

// The 1-D transforms of F(kTile, kKernel), for vectors that are `step` apart; docs/cpu.md derives the
// matrices.
template <int kTile, int kKernel>
struct Transform;

// An axis along which the kernel does not extend.
template <>
struct Transform<1, 1> {
  static void input(Vec*, int) {}
  static void weight(const Vec* g, int, Vec* u, int) { u[0] = g[0]; }
  static void output(const Vec* m, int, Vec* y, int) { y[0] = m[0]; }
};

// Points 0, 1, -1, 1/2, -2, infinity.
template <>
struct Transform<4, 3> {
  static void input(Vec* d, int step) {
    const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vec s = d3 - d1, t = d4 - d2;
    d[0] = fma_vec(broadcast(1.5f), s, fma_vec(broadcast(-2.0f), d2, d0 + d4));
    d[step] = fma_vec(broadcast(2.5f), d3, fma_vec(broadcast(0.5f), d2, d4 - d1));
    d[2 * step] = fma_vec(broadcast(-2.5f), d2, fma_vec(broadcast(0.5f), d3, d4 + d1));
    d[3 * step] = fma_vec(broadcast(2.0f), s, t);
    d[4 * step] = fma_vec(broadcast(-0.5f), s, t);
    d[5 * step] = fma_vec(broadcast(1.5f), t, fma_vec(broadcast(-2.0f), d3, d5 + d1));
  }

  static void weight(const Vec* g, int step, Vec* u, int u_step) {
    const Vec g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const Vec third = broadcast(1.0f / 3);
    u[0] = g0;
    u[u_step] = (g0 + g2 + g1) * third;
    u[2 * u_step] = (g1 - (g0 + g2)) * third;
    u[3 * u_step] = fma_vec(broadcast(4.0f), g0, fma_vec(broadcast(2.0f), g1, g2)) * broadcast(-4.0f / 15);
    u[4 * u_step] = fma_vec(broadcast(4.0f), g2, fma_vec(broadcast(-2.0f), g1, g0)) * broadcast(1.0f / 15);
    u[5 * u_step] = g2;
  }

  static void output(const Vec* m, int step, Vec* y, int y_step) {
    const Vec sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    const Vec m3 = m[3 * step], m4 = m[4 * step];
    y[0] = (m[0] + sum) + (m3 + m4);
    y[y_step] = fma_vec(broadcast(-2.0f), m4, fma_vec(broadcast(0.5f), m3, difference));
    y[2 * y_step] = fma_vec(broadcast(4.0f), m4, fma_vec(broadcast(0.25f), m3, sum));
    y[3 * y_step] = fma_vec(broadcast(-8.0f), m4, fma_vec(broadcast(0.125f), m3, difference)) + m[5 * step];
  }
};

// Points 0, 1, -1, 2, -2, 1/2, -1/2, infinity. What belongs to p and -p is computed as even part plus and
// minus odd part.
template <>
struct Transform<4, 5> {
  static void input(Vec* d, int step) {
    const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    const Vec d4 = d[4 * step], d5 = d[5 * step], d6 = d[6 * step], d7 = d[7 * step];
    const Vec even1 = fma_vec(broadcast(-4.25f), d4, d2 + d6), odd1 = fma_vec(broadcast(-4.25f), d3, d1 + d5);
    const Vec even2 = fma_vec(broadcast(-1.25f), d4, fma_vec(broadcast(0.25f), d2, d6));
    const Vec odd2 = fma_vec(broadcast(2.0f), d5, fma_vec(broadcast(-2.5f), d3, broadcast(0.5f) * d1));
    const Vec even3 = fma_vec(broadcast(-5.0f), d4, fma_vec(broadcast(4.0f), d2, d6));
    const Vec odd3 = fma_vec(broadcast(0.5f), d5, fma_vec(broadcast(-2.5f), d3, broadcast(2.0f) * d1));
    d[0] = fma_vec(broadcast(5.25f), d4 - d2, d0 - d6);
    d[step] = even1 + odd1;
    d[2 * step] = even1 - odd1;
    d[3 * step] = even2 + odd2;
    d[4 * step] = even2 - odd2;
    d[5 * step] = even3 + odd3;
    d[6 * step] = even3 - odd3;
    d[7 * step] = fma_vec(broadcast(5.25f), d3 - d5, d7 - d1);
  }

  static void weight(const Vec* g, int step, Vec* u, int u_step) {
    const Vec g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step], g4 = g[4 * step];
    const Vec even1 = (g0 + g4) + g2, odd1 = g1 + g3;
    const Vec even2 = fma_vec(broadcast(16.0f), g4, fma_vec(broadcast(4.0f), g2, g0));
    const Vec odd2 = fma_vec(broadcast(8.0f), g3, broadcast(2.0f) * g1);
    const Vec even3 = fma_vec(broadcast(16.0f), g0, fma_vec(broadcast(4.0f), g2, g4));
    const Vec odd3 = fma_vec(broadcast(8.0f), g1, broadcast(2.0f) * g3);
    u[0] = g0;
    u[u_step] = (even1 + odd1) * broadcast(-2.0f / 9);
    u[2 * u_step] = (even1 - odd1) * broadcast(-2.0f / 9);
    u[3 * u_step] = (even2 + odd2) * broadcast(1.0f / 90);
    u[4 * u_step] = (even2 - odd2) * broadcast(1.0f / 90);
    u[5 * u_step] = (even3 + odd3) * broadcast(2.0f / 45);
    u[6 * u_step] = (even3 - odd3) * broadcast(2.0f / 45);
    u[7 * u_step] = g4;
  }

  static void output(const Vec* m, int step, Vec* y, int y_step) {
    const Vec sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const Vec sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    const Vec sum3 = m[5 * step] + m[6 * step], difference3 = m[5 * step] - m[6 * step];
    y[0] = (m[0] + sum1) + (sum2 + sum3);
    y[y_step] = fma_vec(broadcast(2.0f), difference2, fma_vec(broadcast(0.5f), difference3, difference1));
    y[2 * y_step] = fma_vec(broadcast(4.0f), sum2, fma_vec(broadcast(0.25f), sum3, sum1));
    y[3 * y_step] =
        fma_vec(broadcast(8.0f), difference2, fma_vec(broadcast(0.125f), difference3, difference1)) +
        m[7 * step];
  }
};

template <WinogradScheme kScheme>
void transform_weights(
    int64_t begin, int64_t end, int64_t in, int64_t out, WinogradWeights w, float* transformed) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kKernelH = kScheme.kernel_h, kKernelW = kScheme.kernel_w;
  constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t blocks = (out + kBlock - 1) / kBlock;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t first = block * kBlock + half * kLanes;
        Vec g[kKernelH * kKernelW], partial[kInputH * kKernelW], u[kPositions];
        for (int a = 0; a < kKernelH; ++a)
          for (int b = 0; b < kKernelW; ++b)
            for (int lane = 0; lane < kLanes; ++lane)
              g[kKernelW * a + b][lane] = first + lane < out
                                              ? w.data
                                                    [(first + lane) * w.out_stride + i * w.in_stride +
                                                     a * w.row_stride + b * w.column_stride]
                                              : 0.0f;
        for (int b = 0; b < kKernelW; ++b) Rows::weight(g + b, kKernelW, partial + b, kKernelW);
        for (int a = 0; a < kInputH; ++a) Columns::weight(partial + kKernelW * a, 1, u + kInputW * a, 1);
        for (int position = 0; position < kPositions; ++position)
          store_vec(
              transformed + ((position * blocks + block) * in + i) * kBlock + half * kLanes, u[position]);
      }
    }
  }
}

// c [kRows][kVectors] = a [kRows][in], rows a_stride apart, times b [in][kVectors]; rows of b and c are 2
// vectors apart.
template <int kRows, int kVectors>
inline void multiply(const float* a, int64_t a_stride, const float* b, float* c, int64_t in) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) sum[row][v] = Vec{};
  for (int64_t i = 0; i < in; ++i) {
    Vec weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = load_vec(b + (2 * i + v) * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vec x = broadcast(a[row * a_stride + i]);
      for (int v = 0; v < kVectors; ++v) sum[row][v] = fma_vec(x, weights[v], sum[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) store_vec(c + (2 * row + v) * kLanes, sum[row][v]);
}

template <int kRows, int kVectors>
void multiply_rest(int64_t rows, const float* a, int64_t a_stride, const float* b, float* c, int64_t in) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      multiply<kRows, kVectors>(a, a_stride, b, c, in);
    else
      multiply_rest<kRows - 1, kVectors>(rows, a, a_stride, b, c, in);
  }
}

template <int kVectors>
void multiply_all(int64_t rows, const float* a, int64_t a_stride, const float* b, float* c, int64_t in) {
  int64_t row = 0;
  for (; row + CONVGRU_TILE_ROWS <= rows; row += CONVGRU_TILE_ROWS)
    multiply<CONVGRU_TILE_ROWS, kVectors>(a + row * a_stride, a_stride, b, c + row * 2 * kLanes, in);
  multiply_rest<CONVGRU_TILE_ROWS - 1, kVectors>(
      rows - row, a + row * a_stride, a_stride, b, c + row * 2 * kLanes, in);
}

template <WinogradScheme kScheme>
void convolve(
    int64_t begin, int64_t end, const WinogradConvolution& p, const float* x, const float* transformed,
    const float* bias, float* y) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kTileH = kScheme.tile_h, kTileW = kScheme.tile_w;
  constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t in = p.in, out = p.out, tile_count = p.tiles_per_block;
  const int64_t tiles_w = kScheme.tiles_w(p.width), tiles_image = kScheme.tiles_h(p.height) * tiles_w;
  const int64_t blocks = (out + kBlock - 1) / kBlock;
  // One cache line more than the channels, so that the rows of a product do not fall on the same cache sets.
  const int64_t row_stride = in + 16;
  float* input = scratch(kPositions * tile_count * (row_stride + kBlock) + in);
  float* products = input + kPositions * tile_count * row_stride;
  float* zeros = products + kPositions * tile_count * kBlock;
  for (int64_t i = 0; i < in; ++i) zeros[i] = 0.0f;

  int64_t transformed_block = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile_block = item / p.channel_splits, split = item % p.channel_splits;
    const int64_t first_tile = tile_block * tile_count;
    const int64_t count = first_tile + tile_count < p.tiles() ? tile_count : p.tiles() - first_tile;

    if (tile_block != transformed_block) {
      transformed_block = tile_block;
      for (int64_t tile = 0; tile < count; ++tile) {
        const int64_t image = (first_tile + tile) / tiles_image, rest = (first_tile + tile) % tiles_image;
        const int64_t top = rest / tiles_w * kTileH - kScheme.kernel_h / 2;
        const int64_t left = rest % tiles_w * kTileW - kScheme.kernel_w / 2;
        const float* pixels[kPositions];
        for (int a = 0; a < kInputH; ++a)
          for (int b = 0; b < kInputW; ++b) {
            const int64_t row = top + a, column = left + b;
            const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
            pixels[kInputW * a + b] = inside ? x + ((image * p.height + row) * p.width + column) * in : zeros;
          }
        for (int64_t channel = 0; channel < in; channel += kLanes) {
          Vec d[kPositions];
          for (int position = 0; position < kPositions; ++position)
            d[position] = load_vec(pixels[position] + channel);
          for (int b = 0; b < kInputW; ++b) Rows::input(d + b, kInputW);
          for (int a = 0; a < kInputH; ++a) Columns::input(d + kInputW * a, 1);
          for (int position = 0; position < kPositions; ++position)
            store_vec(input + (position * tile_count + tile) * row_stride + channel, d[position]);
        }
      }
    }

    const int64_t first_block = blocks * split / p.channel_splits,
                  end_block = blocks * (split + 1) / p.channel_splits;
    for (int64_t block = first_block; block < end_block; ++block) {
      for (int position = 0; position < kPositions; ++position) {
        const float* a = input + position * tile_count * row_stride;
        const float* b = transformed + (position * blocks + block) * in * kBlock;
        float* c = products + position * tile_count * kBlock;
        if (block * kBlock + kLanes < out)
          multiply_all<2>(count, a, row_stride, b, c, in);
        else
          multiply_all<1>(count, a, row_stride, b, c, in);
      }
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t channel = block * kBlock + half * kLanes;
        if (channel >= out) break;
        const Vec b = bias == nullptr ? Vec{} : load_vec(bias + channel);
        for (int64_t tile = 0; tile < count; ++tile) {
          const int64_t image = (first_tile + tile) / tiles_image, rest = (first_tile + tile) % tiles_image;
          const int64_t top = rest / tiles_w * kTileH, left = rest % tiles_w * kTileW;
          Vec m[kPositions], partial[kTileH * kInputW], result[kTileH * kTileW];
          for (int position = 0; position < kPositions; ++position)
            m[position] = load_vec(products + (position * tile_count + tile) * kBlock + half * kLanes);
          for (int column = 0; column < kInputW; ++column)
            Rows::output(m + column, kInputW, partial + column, kInputW);
          for (int row = 0; row < kTileH; ++row)
            Columns::output(partial + kInputW * row, 1, result + kTileW * row, 1);
          const int64_t rows = top + kTileH <= p.height ? kTileH : p.height - top;
          const int64_t columns = left + kTileW <= p.width ? kTileW : p.width - left;
          float* target = y + ((image * p.height + top) * p.width + left) * out + channel;
          for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
              store_vec(target + (row * p.width + column) * out, result[kTileW * row + column] + b);
        }
      }
    }
  }
}

template <WinogradScheme kScheme>
constexpr WinogradKernels kernels_of() {
  return {kScheme, 2 * kLanes, transform_weights<kScheme>, convolve<kScheme>};
}

}  // namespace

extern const WinogradKernelSet kWinograd = {{
    kernels_of<WinogradScheme{4, 4, 3, 3}>(),
    kernels_of<WinogradScheme{1, 4, 1, 5}>(),
    kernels_of<WinogradScheme{4, 1, 5, 1}>(),
}};

}  // namespace convgru::cpu::CONVGRU_ISA
