// The recurrence on a GPU. Inside, everything is channels last: (T,N,H,W,channels).
#pragma once
#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../problem.h"
#include "kernels.h"

namespace convgru::cuda {

// What one call is about, and where it runs.
struct Call {
  Arguments arguments;
  Problem p;
  bool tf32;
  Stream stream;

  const Tensor& weight_hh() const { return arguments.weight_hh; }
  Tensor empty(const std::vector<int64_t>& shape) const { return stable::new_empty(weight_hh(), shape); }
  Valid valid(int64_t t) const { return {p.lengths, t, p.pixels()}; }
};

// (...,C,H,W) as memory (...,H,W,C), copied unless it lies so already.
inline Tensor channels_last_memory(const Tensor& images) {
  const int64_t dim = images.dim();
  return stable::contiguous(stable::transpose(stable::transpose(images, dim - 3, dim - 2), dim - 2, dim - 1));
}

// The same of a sequence (T,N,C,H,W), with zeros past a sample's length, whatever the caller has there.
template <class T>
Tensor valid_memory(const Call& call, const Tensor& images) {
  const Tensor memory = channels_last_memory(images);
  if (call.p.lengths == nullptr) return memory;
  const Tensor valid = call.empty(sizes(memory));
  valid_images(
      ValidImages<T>{
          call.p.T, call.p.N, memory.numel() / (call.p.T * call.p.N), call.p.lengths, data<const T>(memory),
          data<T>(valid)},
      call.stream);
  return valid;
}

// memory (...,H,W,C) as the (...,C,H,W) that the caller sees.
inline Tensor as_images(const Tensor& memory, bool channels_last) {
  const Tensor view = channels_first_view(memory);
  return channels_last ? view : stable::contiguous(view);
}

// memory (T,N,H,W,C) as images (T*N,C,H,W) that are channels last, without a copy.
inline Tensor flat_images(const Tensor& memory) {
  return channels_first_view(stable::flatten(memory, 0, 1));
}

template <class T>
const T* data_or_null(const Optional& tensor) {
  return tensor.has_value() ? data<const T>(*tensor) : nullptr;
}

// Rows [first, first+count) of a weight (O,I,kh,kw), as they convolve their inputs ...
template <class T>
WeightPart<T> rows_of(const Tensor& weight, int64_t first, int64_t count) {
  return {
      data<const T>(weight) + first * weight.stride(0),
      weight.stride(0),
      weight.stride(1),
      weight.stride(2),
      weight.stride(3),
      static_cast<int>(weight.size(1)),
      static_cast<int>(count)};
}

// ... and as the gradient of their outputs goes back to the inputs.
template <class T>
WeightPart<T> transposed_rows_of(const Tensor& weight, int64_t first, int64_t count) {
  const WeightPart<T> part = rows_of<T>(weight, first, count);
  return {
      part.data + (weight.size(2) - 1) * part.row_stride + (weight.size(3) - 1) * part.column_stride,
      part.in_stride,
      part.out_stride,
      -part.row_stride,
      -part.column_stride,
      static_cast<int>(count),
      static_cast<int>(weight.size(1))};
}

// A convolution of images of this call, its weights packed.
template <class T>
class PackedConvolution {
 public:
  // Output channels from narrow_from on see only the first source.
  PackedConvolution(
      const Call& call, const std::vector<WeightPart<T>>& parts, int64_t out, int64_t narrow_from,
      bool cudnn = false)
      : call_(call), narrow_from_(static_cast<int>(narrow_from)) {
    const Tensor& weight = call.weight_hh();
    weights_ = {
        {},
        static_cast<int>(parts.size()),
        static_cast<int>(weight.size(2)),
        static_cast<int>(weight.size(3)),
        static_cast<int>(out),
        cudnn};
    std::copy(parts.begin(), parts.end(), weights_.parts);
    packed_ = call.empty({weights_.packed_size()});
    pack(weights_, data<T>(packed_), call.stream);
  }

  template <template <class> class Epilogue>
  void run(int64_t batch, const std::vector<Source<T>>& sources, const Epilogue<T>& epilogue) const {
    convolve(of(batch, sources), epilogue, call_.stream);
  }

  Convolution<T> of(int64_t batch, const std::vector<Source<T>>& sources) const {
    const Problem& p = call_.p;
    Convolution<T> conv{
        {},
        static_cast<int>(sources.size()),
        batch,
        static_cast<int>(p.H),
        static_cast<int>(p.W),
        weights_.kernel_h,
        weights_.kernel_w,
        weights_.out,
        narrow_from_,
        data<const T>(packed_),
        weights_.columns(),
        call_.tf32};
    std::copy(sources.begin(), sources.end(), conv.sources);
    return conv;
  }

 private:
  const Call& call_;
  int narrow_from_;
  Weights<T> weights_{};
  Tensor packed_;
};

template <class T>
Source<T> source(const T* images, int64_t channels, int64_t pixel_stride) {
  return {images, static_cast<int>(channels), pixel_stride};
}

// Memory for run_sequence.
template <class T>
Tensor meeting_place(const Call& call) {
  constexpr size_t kElements = sizeof(unsigned) / std::min(sizeof(unsigned), sizeof(T));
  return call.empty({static_cast<int64_t>(kElements)});
}

// By one kernel if that can be, else by one for every phase of every step.
template <class T, template <class> class Sequence>
void run(const Sequence<T>& sequence, Stream stream) {
  const int64_t count = sequence.steps.count;
  if (count > 1 && run_sequence(sequence, stream)) return;
  const auto run_phase = [&](const auto& phase) {
    constexpr int kGates = kThreeGates<std::decay_t<decltype(phase.epilogue)>> ? 3 : 1;
    const Convolution<T>& conv = phase.conv;
    if (phase.zeros)
      without_sums(conv.batch * conv.height * conv.width, conv.out / kGates, phase.epilogue, stream);
    else
      convolve(conv, phase.epilogue, stream);
  };
  for (int64_t i = 0; i < count; ++i) {
    run_phase(sequence.template phase<0>(i));
    if constexpr (Sequence<T>::kPhases == 2) run_phase(sequence.template phase<1>(i));
  }
}

// What the gates receive from outside the recurrence: W*x, for all steps at once, and the addends.
template <class T>
class OutsideGates {
 public:
  // convolves: W*x is wanted here.
  OutsideGates(const Call& call, bool convolves);

  // (T*N,H,W,3K), if there is an input and it is wanted.
  const Optional& convolved() const { return convolved_; }

  // Of the first time.
  Addends<T> addends() const;
  // Elements from one time to the next: of convolved, of the addends' maps.
  int64_t convolved_step() const { return convolved_.has_value() ? call_.p.rows() * 3 * call_.p.K : 0; }
  int64_t maps_step() const { return call_.p.N * maps_image(); }

 private:
  int64_t maps_image() const { return (full_maps_ ? call_.p.pixels() : 1) * 3 * call_.p.K; }

  const Call& call_;
  Optional convolved_, maps_;
  bool full_maps_ = false;
};

// The gates of all steps, computed again from the states (T,N,H,W,K) before them: what forward saves.
template <class T>
Tensor recomputed_gates(const Call& call, const Tensor& previous);

template <class T>
std::tuple<Tensor, Tensor> forward(const Call& call, bool save_gates);

template <class T>
Gradients backward(
    const Call& call, const Tensor& grad_output, const Tensor& output, const Tensor& gates,
    const std::vector<bool>& wanted);

}  // namespace convgru::cuda
