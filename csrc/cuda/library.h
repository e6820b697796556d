// PyTorch's convolutions and their gradients: for what can be computed for all time steps at once, and where
// they are faster than ours. Called without its dispatcher, like what is in tensors.h.
#pragma once
#include <array>

#include "../tensors.h"

#if defined(CONVGRU_CUDA_ON_HOST)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#define CONVGRU_ATEN(name) aoti_torch_cpu_##name
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#define CONVGRU_ATEN(name) aoti_torch_cuda_##name
#endif

namespace convgru::cuda {

using Pair = std::array<int64_t, 2>;
constexpr Pair kOnes{1, 1}, kZeros{0, 0};

inline Pair same_padding(const Tensor& weight) {
  return {weight.size(2) / 2, weight.size(3) / 2};
}

// x (M,C,H,W), weight (O,C,kh,kw), odd kernel -> (M,O,H,W). transposed: x (M,O,H,W) -> (M,C,H,W), as the
// gradient of the output goes back to the input.
inline Tensor convolution(const Tensor& x, const Tensor& weight, bool transposed = false) {
  const Pair padding = same_padding(weight);
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(CONVGRU_ATEN(convolution)(
      x.get(), weight.get(), /*bias=*/nullptr, kOnes.data(), 2, padding.data(), 2, kOnes.data(), 2,
      transposed, kZeros.data(), 2, /*groups=*/1, &result));
  return Tensor(result);
}

struct ConvolutionGradients {
  Tensor x, weight;  // undefined unless asked for
};

inline ConvolutionGradients convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, bool wants_x, bool wants_weight) {
  const Pair padding = same_padding(weight);
  const std::array<int32_t, 3> mask{wants_x, wants_weight, false};
  AtenTensorHandle of_x, of_weight, of_bias;
  TORCH_ERROR_CODE_CHECK(CONVGRU_ATEN(convolution_backward)(
      grad.get(), x.get(), weight.get(), /*bias_sizes=*/nullptr, 0, kOnes.data(), 2, padding.data(), 2,
      kOnes.data(), 2, /*transposed=*/false, kZeros.data(), 2, /*groups=*/1, mask.data(), mask.size(), &of_x,
      &of_weight, &of_bias));
  const Tensor none(of_bias);  // takes over the reference
  return {Tensor(of_x), Tensor(of_weight)};
}

}  // namespace convgru::cuda

#undef CONVGRU_ATEN
