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
// (Of generic code: 0 + x would be an addition, for it turns -0 into 0; x - 0 is x.)
inline Vec broadcast(float x) {
#if CONVGRU_VECTOR_BYTES == 64
  return _mm512_set1_ps(x);
#elif CONVGRU_VECTOR_BYTES == 32
  return _mm256_set1_ps(x);
#else
  return x - Vec{};
#endif
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

// The 1-D transforms of F(kTile, kKernel), for vectors that are `step` apart: B^T of the input, G of the
// weight, A^T of the output, A of the output's gradient, G^T of the weight's. docs/cpu.md derives the
// matrices.
template <int kTile, int kKernel>
struct Transform;

// An axis along which the kernel does not extend.
template <>
struct Transform<1, 1> {
  static void input(Vec*, int) {}
  static void weight(const Vec* g, int, Vec* u, int) { u[0] = g[0]; }
  static void output(const Vec* m, int, Vec* y, int) { y[0] = m[0]; }
  static void output_gradient(const Vec* y, int, Vec* u, int) { u[0] = y[0]; }
  static void weight_gradient(const Vec* m, int, Vec* g, int) { g[0] = m[0]; }
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

  static void output_gradient(const Vec* y, int step, Vec* u, int u_step) {
    const Vec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const Vec even = y0 + y2, odd = y1 + y3;
    u[0] = y0;
    u[u_step] = even + odd;
    u[2 * u_step] = even - odd;
    u[3 * u_step] = fma_vec(broadcast(0.5f), y1, y0) + fma_vec(broadcast(0.125f), y3, broadcast(0.25f) * y2);
    u[4 * u_step] = fma_vec(broadcast(-2.0f), y1, y0) + fma_vec(broadcast(-8.0f), y3, broadcast(4.0f) * y2);
    u[5 * u_step] = y3;
  }

  static void weight_gradient(const Vec* m, int step, Vec* g, int g_step) {
    const Vec third = broadcast(1.0f / 3);
    const Vec sum = (m[step] + m[2 * step]) * third, difference = (m[step] - m[2 * step]) * third;
    const Vec m3 = broadcast(4.0f / 15) * m[3 * step], m4 = broadcast(1.0f / 15) * m[4 * step];
    g[0] = (m[0] + difference) + fma_vec(broadcast(-4.0f), m3, m4);
    g[g_step] = fma_vec(broadcast(-2.0f), m3 + m4, sum);
    g[2 * g_step] = (m[5 * step] + difference) + fma_vec(broadcast(4.0f), m4, -m3);
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

  static void output_gradient(const Vec* y, int step, Vec* u, int u_step) {
    const Vec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const Vec even1 = y0 + y2, odd1 = y1 + y3;
    const Vec even2 = fma_vec(broadcast(4.0f), y2, y0);
    const Vec odd2 = fma_vec(broadcast(8.0f), y3, broadcast(2.0f) * y1);
    const Vec even3 = fma_vec(broadcast(0.25f), y2, y0);
    const Vec odd3 = fma_vec(broadcast(0.125f), y3, broadcast(0.5f) * y1);
    u[0] = y0;
    u[u_step] = even1 + odd1;
    u[2 * u_step] = even1 - odd1;
    u[3 * u_step] = even2 + odd2;
    u[4 * u_step] = even2 - odd2;
    u[5 * u_step] = even3 + odd3;
    u[6 * u_step] = even3 - odd3;
    u[7 * u_step] = y3;
  }

  static void weight_gradient(const Vec* m, int step, Vec* g, int g_step) {
    const Vec ninths = broadcast(-2.0f / 9), small = broadcast(1.0f / 90), large = broadcast(2.0f / 45);
    const Vec sum1 = (m[step] + m[2 * step]) * ninths, difference1 = (m[step] - m[2 * step]) * ninths;
    const Vec sum2 = (m[3 * step] + m[4 * step]) * small, difference2 = (m[3 * step] - m[4 * step]) * small;
    const Vec sum3 = (m[5 * step] + m[6 * step]) * large, difference3 = (m[5 * step] - m[6 * step]) * large;
    g[0] = fma_vec(broadcast(16.0f), sum3, sum1 + sum2) + m[0];
    g[g_step] = fma_vec(broadcast(8.0f), difference3, fma_vec(broadcast(2.0f), difference2, difference1));
    g[2 * g_step] = fma_vec(broadcast(4.0f), sum2 + sum3, sum1);
    g[3 * g_step] = fma_vec(broadcast(8.0f), difference2, fma_vec(broadcast(2.0f), difference3, difference1));
    g[4 * g_step] = fma_vec(broadcast(16.0f), sum2, sum1 + sum3) + m[7 * step];
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

// Additions of a product that follow each other in one chain: rounding errors grow with the length of a
// chain, so the sums of shorter ones are added.
constexpr int64_t kChain = 64;

// How the left factor of a product lies in memory: element (row, i) at row * stride + i, or at i * stride +
// row.
enum class Layout { kRows, kColumns };

// c [kRows][kVectors] (+)= a [kRows][depth] times b [depth][kVectors]; rows of b and c are 2 vectors apart.
template <Layout kLayout, int kRows, int kVectors>
inline void multiply(
    const float* a, int64_t stride, const float* b, float* c, int64_t depth, bool accumulate) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) sum[row][v] = Vec{};
  for (int64_t i = 0; i < depth; ++i) {
    Vec right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load_vec(b + (2 * i + v) * kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vec left = broadcast(kLayout == Layout::kRows ? a[row * stride + i] : a[i * stride + row]);
      for (int v = 0; v < kVectors; ++v) sum[row][v] = fma_vec(left, right[v], sum[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) {
      float* target = c + (2 * row + v) * kLanes;
      store_vec(target, accumulate ? load_vec(target) + sum[row][v] : sum[row][v]);
    }
}

template <Layout kLayout, int kRows, int kVectors>
void multiply_rows(
    int64_t rows, const float* a, int64_t stride, const float* b, float* c, int64_t depth, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      multiply<kLayout, kRows, kVectors>(a, stride, b, c, depth, accumulate);
    else
      multiply_rows<kLayout, kRows - 1, kVectors>(rows, a, stride, b, c, depth, accumulate);
  }
}

// A product of any size. For each chain, whose part of b fits the first-level cache, the rows in as few
// passes as the registers allow, and those as even as possible.
template <Layout kLayout, int kVectors>
void multiply_all(
    int64_t rows, const float* a, int64_t stride, const float* b, float* c, int64_t depth,
    bool accumulate = false) {
  const int64_t passes = (rows + CONVGRU_TILE_ROWS - 1) / CONVGRU_TILE_ROWS;
  for (int64_t first = 0; first < depth; first += kChain) {
    const int64_t length = first + kChain < depth ? kChain : depth - first;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = rows * pass / passes, end = rows * (pass + 1) / passes;
      const int64_t offset = kLayout == Layout::kRows ? row * stride + first : first * stride + row;
      multiply_rows<kLayout, CONVGRU_TILE_ROWS, kVectors>(
          end - row, a + offset, stride, b + first * 2 * kLanes, c + row * 2 * kLanes, length,
          accumulate || first > 0);
    }
  }
}

// Where a tile lies: its image and the first of its outputs.
struct TilePosition {
  int64_t image, top, left;
};

template <WinogradScheme kScheme>
inline TilePosition tile_position(int64_t tile, int64_t height, int64_t width) {
  const int64_t tiles_w = kScheme.tiles_w(width), tiles_image = kScheme.tiles_h(height) * tiles_w;
  const int64_t image = tile / tiles_image, rest = tile % tiles_image;
  return {image, rest / tiles_w * kScheme.tile_h, rest % tiles_w * kScheme.tile_w};
}

// Transforms the inputs of one tile: channels of channels-last images (height,width), zero outside of them,
// to target, where a position of the transformed tile is position_stride from the next.
template <WinogradScheme kScheme>
inline void transform_input(
    TilePosition tile, int64_t height, int64_t width, int64_t channels, const float* x, const float* zeros,
    float* target, int64_t position_stride) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  const int64_t top = tile.top - kScheme.kernel_h / 2, left = tile.left - kScheme.kernel_w / 2;
  const float* pixels[kPositions];
  for (int a = 0; a < kInputH; ++a)
    for (int b = 0; b < kInputW; ++b) {
      const int64_t row = top + a, column = left + b;
      const bool inside = row >= 0 && row < height && column >= 0 && column < width;
      pixels[kInputW * a + b] =
          inside ? x + ((tile.image * height + row) * width + column) * channels : zeros;
    }
  for (int64_t channel = 0; channel < channels; channel += kLanes) {
    Vec d[kPositions];
    for (int position = 0; position < kPositions; ++position)
      d[position] = load_vec(pixels[position] + channel);
    for (int b = 0; b < kInputW; ++b) Rows::input(d + b, kInputW);
    for (int a = 0; a < kInputH; ++a) Columns::input(d + kInputW * a, 1);
    for (int position = 0; position < kPositions; ++position)
      store_vec(target + position * position_stride + channel, d[position]);
  }
}

template <WinogradScheme kScheme>
void convolve(
    int64_t begin, int64_t end, const WinogradConvolution& p, const float* x, const float* transformed,
    const float* bias, float* y) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kTileH = kScheme.tile_h, kTileW = kScheme.tile_w;
  constexpr int kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t in = p.in, out = p.out, tile_count = p.tiles_per_block;
  const int64_t blocks = (out + kBlock - 1) / kBlock;
  const int64_t row_stride = winograd_row_stride(in);
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
      for (int64_t tile = 0; tile < count; ++tile)
        transform_input<kScheme>(
            tile_position<kScheme>(first_tile + tile, p.height, p.width), p.height, p.width, in, x, zeros,
            input + tile * row_stride, tile_count * row_stride);
    }

    const int64_t first_block = blocks * split / p.channel_splits,
                  end_block = blocks * (split + 1) / p.channel_splits;
    for (int64_t block = first_block; block < end_block; ++block) {
      for (int position = 0; position < kPositions; ++position) {
        const float* a = input + position * tile_count * row_stride;
        const float* b = transformed + (position * blocks + block) * in * kBlock;
        float* c = products + position * tile_count * kBlock;
        if (block * kBlock + kLanes < out)
          multiply_all<Layout::kRows, 2>(count, a, row_stride, b, c, in);
        else
          multiply_all<Layout::kRows, 1>(count, a, row_stride, b, c, in);
      }
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t channel = block * kBlock + half * kLanes;
        if (channel >= out) break;
        const Vec b = bias == nullptr ? Vec{} : load_vec(bias + channel);
        for (int64_t tile = 0; tile < count; ++tile) {
          const auto [image, top, left] = tile_position<kScheme>(first_tile + tile, p.height, p.width);
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
void transform_for_gradient(
    int64_t begin, int64_t end, const WinogradWeightGradient& p, int64_t first_tile, const float* x,
    const float* grad, float* x_transformed, float* grad_transformed) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kTileH = kScheme.tile_h, kTileW = kScheme.tile_w;
  constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t row_stride = winograd_row_stride(p.in), blocks = (p.out + kBlock - 1) / kBlock;
  const int64_t channels = p.in > p.out ? p.in : p.out;
  float* zeros = scratch(channels);
  for (int64_t i = 0; i < channels; ++i) zeros[i] = 0.0f;
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePosition position_in_image = tile_position<kScheme>(first_tile + tile, p.height, p.width);
    transform_input<kScheme>(
        position_in_image, p.height, p.width, p.in, x, zeros, x_transformed + tile * row_stride,
        p.tiles_per_chunk * row_stride);
    const auto [image, top, left] = position_in_image;
    const float* pixels[kTileH * kTileW];
    for (int a = 0; a < kTileH; ++a)
      for (int b = 0; b < kTileW; ++b)
        pixels[kTileW * a + b] =
            top + a < p.height && left + b < p.width
                ? grad + ((image * p.height + top + a) * p.width + left + b) * p.grad_pixel_stride
                : zeros;
    for (int64_t channel = 0; channel < p.out; channel += kLanes) {
      Vec y[kTileH * kTileW], partial[kInputH * kTileW], u[kPositions];
      for (int pixel = 0; pixel < kTileH * kTileW; ++pixel) y[pixel] = load_vec(pixels[pixel] + channel);
      for (int b = 0; b < kTileW; ++b) Rows::output_gradient(y + b, kTileW, partial + b, kTileW);
      for (int a = 0; a < kInputH; ++a) Columns::output_gradient(partial + kTileW * a, 1, u + kInputW * a, 1);
      const int64_t block = channel / kBlock;
      for (int position = 0; position < kPositions; ++position)
        store_vec(
            grad_transformed + ((position * blocks + block) * p.tiles_per_chunk + tile) * kBlock +
                channel % kBlock,
            u[position]);
    }
  }
}

template <WinogradScheme kScheme>
void multiply_for_gradient(
    int64_t begin, int64_t end, const WinogradWeightGradient& p, int64_t count, bool accumulate,
    const float* x_transformed, const float* grad_transformed, float* sums) {
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t row_stride = winograd_row_stride(p.in), blocks = (p.out + kBlock - 1) / kBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t position = item / blocks, block = item % blocks;
    const float* a = x_transformed + position * p.tiles_per_chunk * row_stride;
    const float* b = grad_transformed + item * p.tiles_per_chunk * kBlock;
    float* c = sums + item * p.in * kBlock;
    if (block * kBlock + kLanes < p.out)
      multiply_all<Layout::kColumns, 2>(p.in, a, row_stride, b, c, count, accumulate);
    else
      multiply_all<Layout::kColumns, 1>(p.in, a, row_stride, b, c, count, accumulate);
  }
}

template <WinogradScheme kScheme>
void finish_gradient(
    int64_t begin, int64_t end, const WinogradWeightGradient& p, const float* sums, float* weights) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kKernelH = kScheme.kernel_h, kKernelW = kScheme.kernel_w, kTaps = kKernelH * kKernelW;
  constexpr int kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t blocks = (p.out + kBlock - 1) / kBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / 2, first = item * kLanes;  // of the output channels
    if (first >= p.out) break;
    for (int64_t i = 0; i < p.in; ++i) {
      Vec m[kPositions], partial[kKernelH * kInputW], g[kTaps];
      for (int position = 0; position < kPositions; ++position)
        m[position] = load_vec(sums + ((position * blocks + block) * p.in + i) * kBlock + item % 2 * kLanes);
      for (int b = 0; b < kInputW; ++b) Rows::weight_gradient(m + b, kInputW, partial + b, kInputW);
      for (int a = 0; a < kKernelH; ++a)
        Columns::weight_gradient(partial + kInputW * a, 1, g + kKernelW * a, 1);
      for (int lane = 0; lane < kLanes; ++lane)
        for (int tap = 0; tap < kTaps; ++tap)
          weights[((first + lane) * p.in + i) * kTaps + tap] = g[tap][lane];
    }
  }
}

template <WinogradScheme kScheme>
constexpr WinogradKernels kernels_of() {
  return {
      kScheme,
      2 * kLanes,
      transform_weights<kScheme>,
      convolve<kScheme>,
      transform_for_gradient<kScheme>,
      multiply_for_gradient<kScheme>,
      finish_gradient<kScheme>};
}

}  // namespace

extern const WinogradKernelSet kWinograd = {{
    kernels_of<WinogradScheme{4, 4, 3, 3}>(),
    kernels_of<WinogradScheme{1, 4, 1, 5}>(),
    kernels_of<WinogradScheme{4, 1, 5, 1}>(),
}};

}  // namespace convgru::cpu::CONVGRU_ISA
