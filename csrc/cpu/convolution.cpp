#include "convolution.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <array>

namespace convgru::cpu {
namespace {

namespace stable = torch::stable;
using torch::headeronly::MemoryFormat;

// A (rows, columns) view of dense channels-last images, or of slices of them.
Tensor as_matrix(const Tensor& images) {
  const int64_t rows = images.size(0) * images.size(2) * images.size(3);
  const int64_t row_stride = images.size(3) > 1 ? images.stride(3) : images.size(2) > 1 ? images.stride(2) : images.stride(0);
  return stable::from_blob(
      images.data_ptr(), {rows, images.size(1)}, {row_stride, 1}, images.device(), images.scalar_type());
}

Tensor transposed(const Tensor& matrix) { return stable::transpose(matrix, 0, 1); }

}  // namespace

Tensor images_view(
    const void* data, const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
    int64_t pixel_stride) {
  return stable::from_blob(
      const_cast<void*>(data), {batch, channels, height, width},
      {height * width * pixel_stride, 1, width * pixel_stride, pixel_stride}, like.device(), like.scalar_type());
}

Convolution::Convolution(const Tensor& weight)
    : weight_(weight), out_(weight.size(0)), in_(weight.size(1)), kernel_h_(weight.size(2)), kernel_w_(weight.size(3)) {
  // The library would reorder other layouts at every call.
  weight_ = kernel_h_ == 1 && kernel_w_ == 1 ? stable::reshape(weight, {out_, in_})
                                             : stable::contiguous(weight, MemoryFormat::ChannelsLast);
}

Tensor Convolution::forward(const Tensor& x, const std::optional<Tensor>& bias) const {
  const int64_t batch = x.size(0), height = x.size(2), width = x.size(3);
  if (weight_.dim() == 2) {
    Tensor y = stable::new_empty(x, {batch, height, width, out_});
    const Tensor out = stable::view(y, {batch * height * width, out_});
    const Tensor rows = as_matrix(x), matrix = transposed(weight_);
    if (bias.has_value()) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), rows.get(), matrix.get(), 1.0, 1.0));
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), rows.get(), matrix.get()));
    }
    return stable::transpose(stable::transpose(y, 2, 3), 1, 2);
  }
  const std::array<int64_t, 2> one{1, 1}, zero{0, 0}, padding{kernel_h_ / 2, kernel_w_ / 2};
  AtenTensorHandle bias_handle = bias.has_value() ? bias->get() : nullptr;
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(
      x.get(), weight_.get(), bias.has_value() ? &bias_handle : nullptr, one.data(), 2, padding.data(), 2, one.data(),
      2, /*transposed=*/0, zero.data(), 2, /*groups=*/1, &result));
  return stable::contiguous(Tensor(result), MemoryFormat::ChannelsLast);
}

Tensor Convolution::grad_input(const Tensor& x, const Tensor& grad) const {
  const int64_t batch = grad.size(0), height = grad.size(2), width = grad.size(3);
  if (weight_.dim() == 2) {
    Tensor y = stable::new_empty(grad, {batch, height, width, in_});
    const Tensor out = stable::view(y, {batch * height * width, in_});
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), as_matrix(grad).get(), weight_.get()));
    return stable::transpose(stable::transpose(y, 2, 3), 1, 2);
  }
  return stable::contiguous(backward(x, grad, true, false).input, MemoryFormat::ChannelsLast);
}

Tensor Convolution::grad_weight(const Tensor& x, const Tensor& grad) const {
  if (weight_.dim() == 2) {
    Tensor out = stable::new_empty(weight_, {out_, in_});
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_mm_out(out.get(), transposed(as_matrix(grad)).get(), as_matrix(x).get()));
    return stable::view(out, {out_, in_, 1, 1});
  }
  return backward(x, grad, false, true).weight;
}

Convolution::Gradients Convolution::backward(const Tensor& x, const Tensor& grad, bool input, bool weight) const {
  const std::array<int64_t, 2> one{1, 1}, zero{0, 0}, padding{kernel_h_ / 2, kernel_w_ / 2};
  const std::array<int32_t, 3> mask{input, weight, false};
  AtenTensorHandle grad_input = nullptr, grad_weight = nullptr, grad_bias = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      grad.get(), x.get(), weight_.get(), /*bias_sizes=*/nullptr, 0, one.data(), 2, padding.data(), 2, one.data(), 2,
      /*transposed=*/0, zero.data(), 2, /*groups=*/1, mask.data(), 3, &grad_input, &grad_weight, &grad_bias));
  Gradients gradients;
  if (grad_input != nullptr) gradients.input = Tensor(grad_input);
  if (grad_weight != nullptr) gradients.weight = Tensor(grad_weight);
  if (grad_bias != nullptr) Tensor unused(grad_bias);
  return gradients;
}

}  // namespace convgru::cpu
