// "Same" convolution of channels-last fp32 images by Winograd's algorithm: raw pointers, no torch, no
// threads.
//
// The image is cut into tiles of outputs, four along every axis along which the kernel extends, one along the
// others. Input tiles, weights and sums are transformed by 1-D matrices B^T, G, A^T along those axes; between
// the transforms the convolution is one matrix product for each position of a transformed tile. F(4x4, 3x3)
// needs 36 products instead of 144 multiplications, F(4, 5) 8 instead of 20. docs/cpu.md derives the matrices
// and says why these interpolation points.
#pragma once
#include <cstdint>

namespace convgru::cpu {

constexpr int kWinogradChannels = 16;  // channel counts have to be multiples of this

struct WinogradScheme {
  int tile_h, tile_w;      // outputs of a tile
  int kernel_h, kernel_w;  // the kernel that it is for

  constexpr int input_h() const { return tile_h + kernel_h - 1; }
  constexpr int input_w() const { return tile_w + kernel_w - 1; }
  constexpr int positions() const { return input_h() * input_w(); }  // of a transformed tile
  constexpr bool one_dimensional() const { return kernel_h == 1 || kernel_w == 1; }
  constexpr int64_t tiles_h(int64_t height) const { return (height + tile_h - 1) / tile_h; }
  constexpr int64_t tiles_w(int64_t width) const { return (width + tile_w - 1) / tile_w; }
};

struct WinogradConvolution {
  WinogradScheme scheme;
  int64_t batch, height, width;
  int64_t in, out;          // channels
  int64_t tiles_per_block;  // tiles that are transformed and multiplied together
  int64_t channel_splits;   // parts into which the output channels are cut, so that few tiles can occupy all
                            // threads

  int64_t tiles() const { return batch * scheme.tiles_h(height) * scheme.tiles_w(width); }
  int64_t tile_blocks() const { return (tiles() + tiles_per_block - 1) / tiles_per_block; }
  int64_t work_items() const { return tile_blocks() * channel_splits; }
};

// The gradient of the weights of such a convolution: sums over all tiles, chunk after chunk. Both factors of
// a chunk are transformed, multiplied position by position and added to the sums; these are transformed at
// the end.
struct WinogradWeightGradient {
  WinogradScheme scheme;
  int64_t batch, height, width;
  int64_t in, out;            // channels
  int64_t grad_pixel_stride;  // elements from one pixel of the output's gradient to the next
  int64_t tiles_per_chunk;

  int64_t tiles() const { return batch * scheme.tiles_h(height) * scheme.tiles_w(width); }
};

// Elements from one transformed tile of `channels` to the next: one cache line more than the channels, so
// that the rows of a product do not fall on the same cache sets.
constexpr int64_t winograd_row_stride(int64_t channels) {
  return channels + 16;
}

// Weights of any layout: w[o*out_stride + i*in_stride + a*row_stride + b*column_stride], a < kernel_h and b <
// kernel_w. Negative strides from the last tap turn the kernel round, for the gradient of the input.
struct WinogradWeights {
  const float* data;
  int64_t out_stride, in_stride, row_stride, column_stride;
};

// The kernels of one scheme.
struct WinogradKernels {
  WinogradScheme scheme;
  int64_t channel_block;  // output channels that are multiplied together

  // For the blocks of output channels [begin, end): transformed[positions][blocks][in][channel_block].
  void (*transform_weights)(
      int64_t begin, int64_t end, int64_t in, int64_t out, WinogradWeights weights, float* transformed);

  // The work items [begin, end) of y = convolution of x + bias. No result depends on how work is divided.
  void (*convolve)(
      int64_t begin, int64_t end, const WinogradConvolution& convolution,
      const float* x,            // (batch,height,width,in)
      const float* transformed,  // as transform_weights leaves it
      const float* bias,         // (out) or nullptr
      float* y);                 // (batch,height,width,out)

  // The weight gradient in three steps. First the tiles first_tile + [begin, end) of a chunk:
  void (*transform_for_gradient)(
      int64_t begin, int64_t end, const WinogradWeightGradient& gradient, int64_t first_tile,
      const float* x,            // (batch,height,width,in)
      const float* grad,         // (batch,height,width,out), pixels grad_pixel_stride apart
      float* x_transformed,      // [positions][tiles_per_chunk][winograd_row_stride(in)]
      float* grad_transformed);  // [positions][blocks][tiles_per_chunk][channel_block]

  // Then the products [begin, end) of positions * blocks, over the `count` tiles of the chunk.
  void (*multiply_for_gradient)(
      int64_t begin, int64_t end, const WinogradWeightGradient& gradient, int64_t count, bool accumulate,
      const float* x_transformed, const float* grad_transformed,
      float* sums);  // [positions][blocks][in][channel_block]; with accumulate in and out, else out

  // At last the half blocks [begin, end) of output channels.
  void (*finish_gradient)(
      int64_t begin, int64_t end, const WinogradWeightGradient& gradient, const float* sums,
      float* weights);  // (out,in,kernel_h,kernel_w)

  int64_t channel_blocks(int64_t out) const { return (out + channel_block - 1) / channel_block; }
  int64_t weights_size(int64_t in, int64_t out) const {
    return scheme.positions() * channel_blocks(out) * channel_block * in;
  }
};

// The kernels of every scheme for one instruction set.
struct WinogradKernelSet {
  WinogradKernels schemes[3];
};

// The kernels for a convolution by kernel_h x kernel_w and the instruction set that capability() names;
// nullptr if there are none.
const WinogradKernels* winograd_kernels(int64_t kernel_h, int64_t kernel_w);

}  // namespace convgru::cpu
