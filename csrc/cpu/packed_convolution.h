// A convolution of the recurrence, ready to run: plan, packed weights, threads.
#pragma once
#include <memory>
#include <vector>

#include "../tensors.h"
#include "memory.h"
#include "packed_weights.h"
#include "plan.h"
#include "schedule.h"

namespace convgru::cpu {

// The arithmetic of a call, and what came of it.
struct Mode {
  Numerics numerics;
  NotFinite not_finite;
};

// Output channels [first, first+count) of a weight (O,I,kh,kw) whose memory is dense, O outermost.
struct WeightRows {
  const Tensor& weight;
  int64_t first, count;
};

template <class T>
class PackedConvolution {
 public:
  // extents: of the images that will be convolved, which decide on the algorithm, and of the kernel.

  // The convolution of images by such rows of a weight: I -> count channels.
  static PackedConvolution forward(const WeightRows& rows, const ConvolutionShape& extents, const Mode& mode);

  // The same of [x, h] at once, by as many rows of a weight each.
  static PackedConvolution joined(
      const WeightRows& x, const WeightRows& h, const ConvolutionShape& extents, const Mode& mode);

  // U*h of the variant "cudnn", its output channels in the order of cudnn_channel.
  static PackedConvolution cudnn(const Tensor& weight_hh, const ConvolutionShape& extents, const Mode& mode);

  // The transposed convolution: the gradient of the input. Its channels come in two sources if parts has two
  // elements, which are rows of the same weight.
  static PackedConvolution transposed(
      const std::vector<WeightRows>& parts, const ConvolutionShape& extents, const Mode& mode);

  // Whether it goes by tiles of 4x4 pixels.
  bool in_square_tiles() const { return kernels_->scheme.tile_h == 4 && kernels_->scheme.tile_w == 4; }

  // On `batch` images. This object and what the epilogue's arguments point to have to be there until it has
  // run.
  Stage stage(int64_t batch, const Input<T>& input, const Epilogue<T>& epilogue) const;

 private:
  // Some input channels of the weights: WeightPart with the memory that it comes from.
  struct Part {
    WeightPart<T> weights;
    std::vector<int32_t> outs;
    WeightMemory<T> memory;
  };
  PackedConvolution(
      std::vector<Part> parts, int64_t in, int64_t out, int64_t channel_unit, ConvolutionShape shape,
      const Mode& mode);
  static Part part_of(const WeightRows& rows, std::vector<int32_t> outs, int64_t first);
  Weights<T> weights() const;

  const ConvolutionKernels<T>* kernels_;
  std::vector<Part> parts_;
  std::shared_ptr<const acc_t<T>[]> packed_;  // nullptr where the weights are read as they are
  ConvolutionShape shape_;
  Mode mode_;
  int64_t channel_unit_;
};

// Gradients of weights, sums over all images: of those of some convolutions of images of the same size, whose
// outputs are channels of the same tensor.
template <class T>
class WeightGradients {
 public:
  // The gradient of the weight from source number `source` to the output channels [first_out, first_out+out).
  struct Term {
    int source;
    int64_t first_out, out;
  };

  // channels: of the sources. extents: of the images of the first call of add, no later one may have more,
  // and of the kernel. once: add will be called once, and what it gets will stay where it is until the last
  // call of finish.
  WeightGradients(
      const std::vector<int64_t>& channels, int64_t out, const std::vector<Term>& terms,
      const ConvolutionShape& extents, bool once, const Mode& mode);

  // Adds what `batch` images give: the sources and the gradient of all outputs.
  void add(int64_t batch, const std::vector<Source<T>>& sources, const Source<T>& grad);

  // The sum for one term, dense (out,in,kh,kw); once, after the last call of add. At least one image has been
  // added.
  void finish(int term, T* gradient) const;

 private:
  using A = acc_t<T>;
  const ConvolutionKernels<T>* kernels_;
  GradientWork work_{};
  Mode mode_;
  // What a call of add gets.
  struct Images {
    GradientWork work;
    GradientInput<T> x;
    const Source<T>& grad;
  };
  // Some tiles of a slice.
  struct Chunk {
    int64_t first, count;
    bool accumulate;
    A* sums[kMostGradientTerms];
  };
  // The panels of a chunk.
  struct Panels {
    Panels(const ConvolutionKernels<T>& kernels, const GradientWork& work);
    Buffer<A> x, grad;
  };
  int64_t products() const;
  int64_t sums_size(int term) const;
  int64_t slice_begin(const Images& images, int64_t slice) const;
  template <class F>
  void for_chunks(const Images& images, int64_t slice, const F& f) const;
  void add_by_one(const Images& images, int64_t slice) const;
  void add_by_all(const Images& images, const Chunk& chunk, const Panels& panels) const;

  Buffer<A> sums_[kMostGradientTerms];  // [slices][sums_size]
  bool started_ = false;
  // The gradients of weights that are read in place are written in place.
  bool in_place_ = false;
  std::vector<int> term_sources_;
  std::vector<Source<T>> sources_;
  Source<T> grad_{};
};

}  // namespace convgru::cpu
