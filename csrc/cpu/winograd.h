// 3x3 "same" convolution of channels-last fp32 images by Winograd's F(4x4, 3x3): raw pointers, no torch, no
// threads.
//
// The image is cut into tiles of 4x4 outputs. Input tiles (6x6), weights (3x3) and sums are transformed by
// the 1-D matrices B^T, G, A^T along both axes; between the transforms the convolution is 36 matrix products,
// one for each position of the transformed tile: four times fewer multiplications than the direct sum. The
// interpolation points 0, 1, -1, 1/2, -2 are chosen for accuracy (docs/cpu.md), not for the fewest additions.
#pragma once
#include <cstdint>

namespace convgru::cpu {

constexpr int kWinogradTile = 4;        // outputs of a tile along each axis
constexpr int kWinogradPositions = 36;  // of a transformed tile
constexpr int kWinogradChannels = 16;   // channel counts have to be multiples of this

struct WinogradConvolution {
  int64_t batch, height, width;
  int64_t in, out;          // channels
  int64_t tiles_per_block;  // tiles that are transformed and multiplied together
  int64_t channel_splits;   // parts into which the output channels are cut, so that few tiles can occupy all
                            // threads

  int64_t tiles_h() const { return (height + kWinogradTile - 1) / kWinogradTile; }
  int64_t tiles_w() const { return (width + kWinogradTile - 1) / kWinogradTile; }
  int64_t tiles() const { return batch * tiles_h() * tiles_w(); }
  int64_t tile_blocks() const { return (tiles() + tiles_per_block - 1) / tiles_per_block; }
  int64_t work_items() const { return tile_blocks() * channel_splits; }
};

// Weights of any layout: w[o*out_stride + i*in_stride + a*row_stride + b*column_stride], a and b in 0..2.
// Negative strides from the last tap turn the kernel round, for the gradient of the input.
struct WinogradWeights {
  const float* data;
  int64_t out_stride, in_stride, row_stride, column_stride;
};

struct WinogradKernels {
  int64_t channel_block;  // output channels that are multiplied together

  // For the blocks of output channels [begin, end): transformed[36][blocks][in][channel_block].
  void (*transform_weights)(
      int64_t begin, int64_t end, int64_t in, int64_t out, WinogradWeights weights, float* transformed);

  // The work items [begin, end) of y = convolution of x + bias. No result depends on how work is divided.
  void (*convolve)(
      int64_t begin, int64_t end, const WinogradConvolution& convolution,
      const float* x,            // (batch,height,width,in)
      const float* transformed,  // as transform_weights leaves it
      const float* bias,         // (out) or nullptr
      float* y);                 // (batch,height,width,out)
};

// The kernels for the instruction set that capability() names.
const WinogradKernels& winograd_kernels();

inline int64_t winograd_weights_size(int64_t in, int64_t out) {
  const int64_t block = winograd_kernels().channel_block;
  return kWinogradPositions * ((out + block - 1) / block * block) * in;
}

}  // namespace convgru::cpu
