// The recurrence on the CPU: what forward and backward share. Inside, everything is channels last: a buffer
// of some time steps is (steps,N,H,W,channels).
#pragma once
#include <deque>
#include <optional>
#include <tuple>
#include <vector>

#include "../problem.h"
#include "gates.h"
#include "layout.h"
#include "packed_convolution.h"

namespace convgru::cpu {

// What one call is about, and its arithmetic.
struct Problem : convgru::Problem {
  Mode mode;

  Grid grid() const { return {N, H, W}; }
  Valid valid(int64_t t) const { return {lengths, t, pixels()}; }
  // Of so many images, for a convolution by the kernel of a weight.
  ConvolutionShape extents(int64_t batch, const Tensor& weight) const {
    return {batch, H, W, 0, 0, weight.size(2), weight.size(3)};
  }
  // The rows of valid(t) where a step is the first that its sample sees.
  bool starts(int64_t t, int64_t n) const {
    if (!reverse) return t == 0;
    return lengths == nullptr ? t == T - 1 : t == lengths[n] - 1;
  }
};

// States (T,N,K,H,W), and the gates (T,N,H,W,3K) r|z|n, for "cudnn" (T,N,H,W,4K) r|z|n|q; without save_gates
// (0,).
template <class T>
std::tuple<Tensor, Tensor> forward(const Arguments& arguments, const Problem& p, bool save_gates);

// The gradients of the arguments that are wanted, (0,) of the others, from what forward returned; gates may
// be (0,), then they are computed again.
template <class T>
Gradients backward(
    const Tensor& grad_output, const Arguments& arguments, const Tensor& output, const Tensor& gates,
    const Problem& p, const std::vector<bool>& wanted);

// What the kernels of one call share.
template <class T>
struct Kernels {
  const GateKernels<T>& gates = gate_kernels<T>();
  WithoutSums<T> without_sums = convolution_kernels<T>().without_sums;

  // An epilogue of `out` channels for some images, where there is nothing to convolve.
  Stage stage_without_sums(const Grid& grid, int64_t images, int64_t out, const Epilogue<T>& epilogue) const {
    return over_images(
        grid, images, out, grid.pixels(),
        [=, run = without_sums](int64_t image, int64_t first, int64_t pixels) {
          const int64_t begin = image * grid.pixels() + first;
          run(begin, begin + pixels, out, epilogue);
        });
  }
};

template <class T>
Input<T> one_source(const T* images, int64_t channels, int64_t pixel_stride) {
  return {{{images, channels, pixel_stride}}, 1};
}

// A contiguous vector in the type that the kernels compute in; empty if there is none.
template <class T>
std::vector<acc_t<T>> to_compute_type(const Optional& vector) {
  if (!vector.has_value()) return {};
  std::vector<acc_t<T>> values(vector->numel());
  std::transform(
      data<T>(*vector), data<T>(*vector) + vector->numel(), values.begin(), [](T x) { return widen(x); });
  return values;
}

inline RecurrencePlan plan_recurrence(const Arguments& arguments, const Problem& p, int64_t itemsize) {
  const Tensor& hidden = arguments.weight_hh;
  const Tensor& outside = arguments.weight_ih.has_value() ? *arguments.weight_ih : hidden;
  return plan_recurrence(
      {p.T, p.N, arguments.input.has_value() ? arguments.input->size(2) : 0, p.K, p.H, p.W, outside.size(2),
       outside.size(3), hidden.size(2), hidden.size(3), p.cudnn, arguments.hx.has_value(), itemsize});
}

// What the gates receive from outside the recurrence: W*x + biases + gate_bias, for some steps at a time.
template <class T>
class OutsideGates {
 public:
  // steps: in a call of add, at most.
  OutsideGates(const Arguments& arguments, const Problem& p, int64_t steps);

  // Adds what makes a, for the steps [first, first+steps), and returns the stage after which it is there. One
  // call for each schedule.
  int add(Schedule& schedule, int64_t first, int64_t steps, const GateRows<T>& a);

  // Whether a may be in the order of tiles.
  bool in_tiles() const { return !convolution_.has_value() || convolution_->in_square_tiles(); }

  // The addends of some steps, there when `stage` has run, for who convolves by himself. They take the place
  // of those of the call before: after what reads these.
  struct StagedAddends {
    Addends<T> addends;
    int stage;
  };
  StagedAddends addends(Schedule& schedule, int64_t first, int64_t steps, std::vector<After> after);

 private:
  std::vector<acc_t<T>> direct_bias(const Arguments& arguments) const;

  Problem p_;
  int64_t halo_;
  std::vector<acc_t<T>> bias_;
  std::optional<Images<T>> input_, maps_;
  std::optional<PackedConvolution<T>> convolution_;
  Buffer<T> input_buffer_, maps_buffer_;
  InputGates<T> gates_{};
};

// Rows above and below its own that a "same" convolution by a weight reads.
inline int64_t halo_of(const Tensor& weight) {
  return weight.size(2) / 2;
}

}  // namespace convgru::cpu
