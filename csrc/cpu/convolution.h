// "Same" convolutions of channels-last images, each sum handed to an epilogue while it is in cache: raw
// pointers, no torch, no threads.
//
// Every algorithm is the same three stages, block by block of tiles:
//   1. the panel: tiles of the input, transformed (Winograd) or copied tap after tap (direct)
//   2. for each position of a transformed tile, a matrix product of panel and packed weights
//   3. the products of a tile, transformed back to the sums of its pixels, go to the epilogue
// The direct algorithm is the one whose tile is a pixel with a single position. docs/cpu.md derives the
// transforms.
#pragma once
#include <atomic>
#include <cstdint>

#include "scalar.h"

namespace convgru::cpu {

enum class Algorithm {
  kDirect,     // the sum as it stands; any kernel, any type
  kWinograd2,  // Winograd's with tiles of two outputs along each axis: F(2x2, 3x3)
  kWinograd4,  // the same with four outputs along each axis of the kernel: F(4x4, 3x3), F(4, 5)
};

// The shape of a transformed tile. Direct: one pixel, one position, whatever the kernel.
struct Scheme {
  Algorithm algorithm;
  int tile_h, tile_w;      // outputs of a tile
  int kernel_h, kernel_w;  // the kernel that it is for; 0 for any

  CONVGRU_INLINE constexpr bool direct() const { return algorithm == Algorithm::kDirect; }
  CONVGRU_INLINE constexpr int input_h() const { return direct() ? 1 : tile_h + kernel_h - 1; }
  CONVGRU_INLINE constexpr int input_w() const { return direct() ? 1 : tile_w + kernel_w - 1; }
  CONVGRU_INLINE constexpr int positions() const { return input_h() * input_w(); }
  // Along an axis: the first so many points are enough for a tile of which only `outputs` count. Without the
  // last, which is infinity, they are those of F(tile - 1), and F(4, 3) leaves out more where it can.
  CONVGRU_INLINE static constexpr int used_points(int tile, int kernel, int64_t outputs) {
    if (outputs >= tile) return tile + kernel - 1;
    return kernel == 3 ? static_cast<int>(outputs) + 2 : tile + kernel - 2;
  }
  CONVGRU_INLINE constexpr int used_h(int64_t outputs) const {
    return direct() ? 1 : used_points(tile_h, kernel_h, outputs);
  }
  CONVGRU_INLINE constexpr int used_w(int64_t outputs) const {
    return direct() ? 1 : used_points(tile_w, kernel_w, outputs);
  }
  // The positions that the tiles of an image use, of all of them together.
  CONVGRU_INLINE constexpr int64_t used_positions(int64_t height, int64_t width) const {
    const int64_t edge_h = height % tile_h, edge_w = width % tile_w;
    return (height / tile_h * input_h() + (edge_h > 0 ? used_h(edge_h) : 0)) *
           (width / tile_w * input_w() + (edge_w > 0 ? used_w(edge_w) : 0));
  }
  CONVGRU_INLINE constexpr int64_t tiles_h(int64_t height) const { return (height + tile_h - 1) / tile_h; }
  CONVGRU_INLINE constexpr int64_t tiles_w(int64_t width) const { return (width + tile_w - 1) / tile_w; }
};

constexpr int kMostSources = 2;

// Some rows of images, counted through: image * height + row.
struct Rows {
  int64_t begin, end;
};

// Part of the input's channels: dense images (batch,height,width) whose pixels are pixel_stride elements
// apart.
template <class T>
struct Source {
  const T* data;
  int64_t channels;
  int64_t pixel_stride;
};

template <class T>
struct Input {
  Source<T> sources[kMostSources];
  int count;

  CONVGRU_INLINE int64_t channels() const {
    int64_t sum = 0;
    for (int s = 0; s < count; ++s) sum += sources[s].channels;
    return sum;
  }
};

// What happens to the sums. Called once for every pixel and output channel.
template <class T>
struct Epilogue {
  // c [count][stride]: the sums of the output channels [channel, channel+channels) at these pixels, numbers
  // (image*height + row)*width + column.
  void (*apply)(
      const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
      const acc_t<T>* c, int64_t stride);
  const void* arguments;
};

// Where Winograd's algorithm came to an infinity or a NaN, which the direct sum may not have or may have
// elsewhere: a flag for each sample, none where only the direct sum is at work. Images of several time steps
// lie one batch after the other.
struct NotFinite {
  std::atomic<bool>* flags;
  int64_t samples;
  CONVGRU_INLINE void note(int64_t image) const {
    flags[image % samples].store(true, std::memory_order_relaxed);
  }
};

// Extents of a convolution and how its work is cut.
struct Work {
  int64_t batch, height, width;
  int64_t kernel_h, kernel_w;
  int64_t tiles_per_block;  // tiles whose panel is made and multiplied together
  int64_t channel_splits;   // parts of the output channels, so that few tiles can occupy all threads
  int64_t channel_unit;     // output channels that no split tears apart

  CONVGRU_INLINE int64_t tiles(const Scheme& scheme) const {
    return batch * scheme.tiles_h(height) * scheme.tiles_w(width);
  }
  CONVGRU_INLINE int64_t items(const Scheme& scheme) const {
    return (tiles(scheme) + tiles_per_block - 1) / tiles_per_block * channel_splits;
  }
};

// Elements from one row of a panel to the next. Long rows are a cache line longer than the depth, so that the
// rows of a product do not fall on the same cache sets.
template <class A>
CONVGRU_INLINE constexpr int64_t panel_stride(int64_t depth) {
  constexpr int64_t kLine = 64 / sizeof(A);
  const int64_t lines = (depth + kLine - 1) / kLine;
  return (lines < 16 ? lines : lines | 1) * kLine;
}

// Elements from one position of a panel or of products to the next, from those of its rows: an odd number of
// cache lines, so that the positions of a tile, which are written or read together, fall on different cache
// sets.
template <class A>
CONVGRU_INLINE constexpr int64_t position_stride(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(A);
  return ((elements + kLine - 1) / kLine | 1) * kLine;
}

// One part of the weights that are packed together: any layout, w[o*out_stride + i*in_stride + a*row_stride +
// b*column_stride]. Negative strides from the last tap turn the kernel round, for the gradient of the input.
template <class T>
struct WeightPart {
  const T* data;
  int64_t out_stride, in_stride, row_stride, column_stride;
  const int32_t* outs;      // for each packed output channel the o that it is
  int64_t first, channels;  // input channels: those of this part and where they start
};

template <class T>
struct Weights {
  WeightPart<T> parts[kMostSources];
  int count;
  int64_t out, in;  // of all parts together
  int64_t kernel_h, kernel_w;
};

// The weight gradients of the convolutions that add up to the same outputs, each of some inputs and some of
// the outputs: sums over all tiles, chunk after chunk. The panels of inputs and of the output's gradient are
// made once for all of them.
constexpr int kMostGradientSources = 3;
constexpr int kMostGradientTerms = 3;

template <class T>
struct GradientInput {
  Source<T> sources[kMostGradientSources];
  int count;
};

// The gradient of one weight.
struct GradientTerm {
  int64_t first_in, in;    // input channels, in the panel of all sources
  int64_t first_out, out;  // output channels, of the output's gradient
  int64_t row_splits;      // parts into which the rows of a product are cut, so that all threads have some
};

struct GradientWork {
  int64_t batch, height, width;
  int64_t kernel_h, kernel_w;
  int64_t in, out;  // channels of all sources and of the output's gradient
  int64_t tiles_per_chunk;
  int64_t slices;  // ranges of the tiles that are summed up apart
  bool ragged;  // a source's channels are not a multiple of a cache line: rows of a panel need room for more
  GradientTerm terms[kMostGradientTerms];
  int term_count;

  CONVGRU_INLINE int64_t tiles(const Scheme& scheme) const {
    return batch * scheme.tiles_h(height) * scheme.tiles_w(width);
  }
  // Rows of a panel for an input channel.
  CONVGRU_INLINE int64_t taps(const Scheme& scheme) const {
    return scheme.direct() ? kernel_h * kernel_w : 1;
  }
  // Elements from one row of the inputs' panel to the next, for the compute type A.
  template <class A>
  CONVGRU_INLINE int64_t x_stride(const Scheme& scheme) const {
    return panel_stride<A>(taps(scheme) * in + (ragged ? 64 / sizeof(A) : 0));
  }
};

// The blocks of output channels of a term: [first, first+count), of `block` channels each.
struct BlockRange {
  int64_t first, count;
};
CONVGRU_INLINE BlockRange blocks_of(const GradientTerm& term, int64_t block) {
  const int64_t first = term.first_out / block;
  return {first, (term.first_out + term.out + block - 1) / block - first};
}

// Elements of a term's sums, for all positions.
CONVGRU_INLINE int64_t
gradient_sums(const Scheme& scheme, const GradientTerm& term, int64_t block, int64_t taps) {
  return scheme.positions() * blocks_of(term, block).count * block * taps * term.in;
}

// The kernels of one scheme for images of T.
template <class T>
struct ConvolutionKernels {
  using A = acc_t<T>;

  Scheme scheme;
  int64_t channel_block;  // output channels that are multiplied together

  // For the blocks of output channels [begin, end): packed[blocks][positions][depth][channel_block], where
  // depth is the input channels, for the direct algorithm part by part, tap by tap, channel by channel.
  // past_cache: to be written to memory without being brought into the caches, which are too small for them.
  void (*pack)(int64_t begin, int64_t end, const Weights<T>& weights, A* packed, bool past_cache);

  // The work items [begin, end). No result depends on how the work is divided.
  void (*convolve)(
      int64_t begin, int64_t end, const Work& work, const Input<T>& input, int64_t out, const A* packed,
      const Epilogue<T>& epilogue, const NotFinite& not_finite);

  // The rows from the first to the last of the tiles first + [0, count).
  Rows (*rows_of_tiles)(int64_t batch, int64_t height, int64_t width, int64_t first, int64_t count);

  // Weight gradients in three steps. First the tiles first_tile + [begin, end) of a chunk:
  void (*gradient_panels)(
      int64_t begin, int64_t end, const GradientWork& work, int64_t first_tile, const GradientInput<T>& x,
      const Source<T>& grad,
      A* x_panel,      // [positions][tiles_per_chunk][x_stride], positions position_stride apart
      A* grad_panel);  // [positions][blocks][tiles_per_chunk][channel_block], likewise

  // Then the items [begin, end) of positions * blocks * row_splits of all terms, over the `count` tiles of
  // the chunk.
  void (*gradient_products)(
      int64_t begin, int64_t end, const GradientWork& work, int64_t first_tile, int64_t count,
      bool accumulate, const A* x_panel, const A* grad_panel,
      A* const* sums);  // of each term [positions][its blocks][taps*its in][channel_block]; with accumulate
                        // in and out, else out

  // At last the blocks [begin, end) of a term. Notes in not_finite under sample 0.
  void (*gradient_finish)(
      int64_t begin, int64_t end, const GradientWork& work, const GradientTerm& term, const A* sums,
      T* gradient,  // (term.out,term.in,kernel_h,kernel_w)
      const NotFinite& not_finite);

  CONVGRU_INLINE int64_t blocks(int64_t out) const { return (out + channel_block - 1) / channel_block; }
  CONVGRU_INLINE int64_t packed_size(int64_t depth, int64_t out) const {
    return scheme.positions() * blocks(out) * channel_block * depth;
  }
};

// Pixels that one call of an epilogue gets at most.
constexpr int kEpiloguePixels = 64;

// Calls the epilogue for the pixels [begin, end) with sums of zero: for convolutions of a zero state.
template <class T>
using WithoutSums = void (*)(int64_t begin, int64_t end, int64_t out, const Epilogue<T>& epilogue);

template <class T>
struct ConvolutionKernelSet {
  ConvolutionKernels<T> direct;
  ConvolutionKernels<T> winograd[4];
  int winograd_count;
  WithoutSums<T> without_sums;
};

// Convolutions of few pixels by 1x1 kernels.
template <class T>
struct PointwiseKernels {
  // The weights are not packed but read where they lie: with the input channels next to each other in memory,
  // or the output channels in their order. For the units [begin, end) of channel_unit output channels each, a
  // multiple of the kernels' channel_block.
  void (*convolve)(
      int64_t begin, int64_t end, int64_t pixels, int64_t channel_unit, const Input<T>& input,
      const Weights<T>& weights, const Epilogue<T>& epilogue);

  // The gradient of the weight (grad.channels,x.channels), for the units [begin, end) of gradient_unit output
  // channels each.
  void (*gradient)(
      int64_t begin, int64_t end, int64_t pixels, const Source<T>& x, const Source<T>& grad, T* gradient);
  int64_t gradient_unit;
};
template <class T>
const PointwiseKernels<T>& pointwise_kernels();

// The kernels for the instruction set that capability() names; T is float, double, bfloat16 or float16.
template <class T>
const ConvolutionKernelSet<T>& convolution_kernels();

// The scheme of an algorithm for a kernel; nullptr if there is none.
template <class T>
const ConvolutionKernels<T>* find_kernels(Algorithm algorithm, int64_t kernel_h, int64_t kernel_w);

}  // namespace convgru::cpu
