// PyTorch's convolutions and their gradients: for what can be computed for all time steps at once, and where
// they are faster than ours.
#pragma once
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <array>
#include <vector>

#include "../tensors.h"

namespace convgru::cuda {

namespace detail {

// The arguments of aten::convolution after the bias, of a "same" convolution.
inline std::array<StableIValue, 6> same_options(const Tensor& weight) {
  using stable::detail::from;
  const std::vector<int64_t> ones{1, 1}, zeros{0, 0}, padding{weight.size(2) / 2, weight.size(3) / 2};
  return {from(ones), from(padding), from(ones), from(false), from(zeros), from(int64_t{1})};
}

}  // namespace detail

// x (M,C,H,W), weight (O,C,kh,kw), odd kernel -> (M,O,H,W).
inline Tensor convolution(const Tensor& x, const Tensor& weight) {
  using stable::detail::from;
  const auto options = detail::same_options(weight);
  std::array<StableIValue, 9> stack{from(x), from(weight), from(Optional())};
  std::copy(options.begin(), options.end(), stack.begin() + 3);
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return stable::detail::to<Tensor>(stack[0]);
}

inline Tensor flip(const Tensor& tensor, const std::vector<int64_t>& axes) {
  using stable::detail::from;
  std::array<StableIValue, 2> stack{from(tensor), from(axes)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::flip", "", stack.data(), TORCH_ABI_VERSION));
  return stable::detail::to<Tensor>(stack[0]);
}

struct ConvolutionGradients {
  Tensor x, weight;  // undefined unless asked for
};

inline ConvolutionGradients convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, bool wants_x, bool wants_weight) {
  using stable::detail::from;
  const auto options = detail::same_options(weight);
  std::array<StableIValue, 11> stack{
      from(grad), from(x), from(weight), from(std::optional<std::vector<int64_t>>())};
  std::copy(options.begin(), options.end(), stack.begin() + 4);
  const std::array<bool, 3> mask{wants_x, wants_weight, false};
  stack[10] = from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), mask.size()));
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  ConvolutionGradients gradients{stable::detail::to<Tensor>(stack[0]), stable::detail::to<Tensor>(stack[1])};
  stable::detail::to<Tensor>(stack[2]);  // takes over the reference
  return gradients;
}

}  // namespace convgru::cuda
