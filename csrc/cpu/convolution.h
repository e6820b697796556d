// "Same" convolutions of channels-last images: the one place that decides which code runs a convolution on
// the CPU.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <vector>

namespace convgru::cpu {

using torch::stable::Tensor;

struct WinogradKernels;

// Images are (B,channels,H,W) whose memory is a dense (B,H,W,channels).
class Convolution {
 public:
  // weight (O,I,kh,kw), kh and kw odd. fast allows Winograd's algorithm in fp32; without it every sum is the
  // direct one.
  Convolution(const Tensor& weight, bool fast);

  // x (B,I,H,W), bias (O,) -> (B,O,H,W)
  Tensor forward(const Tensor& x, const std::optional<Tensor>& bias) const;

  // The transposed convolution: grad (B,O,H,W) -> (B,I,H,W); x (B,I,H,W) gives shape and layout, its values
  // do not matter
  Tensor grad_input(const Tensor& x, const Tensor& grad) const;

  // x (B,I,H,W), grad (B,O,H,W), whose pixels may be wider apart than O -> (O,I,kh,kw). B is a multiple of
  // images_per_step.
  Tensor grad_weight(const Tensor& x, const Tensor& grad, int64_t images_per_step) const;

 private:
  enum class Algorithm { kMatrixProduct, kWinograd, kLibrary };
  Algorithm choose(int64_t batch, int64_t height, int64_t width) const;
  const Tensor& library_weight() const;
  const std::vector<float>& winograd_weight(bool transposed) const;

  Tensor weight_;
  int64_t out_, in_, kernel_h_, kernel_w_;
  const WinogradKernels* winograd_;  // nullptr if the algorithm is not allowed or does not apply
  mutable std::optional<Tensor> library_weight_;
  mutable std::shared_ptr<const std::vector<float>> winograd_weight_[2];  // as it is, and transposed
};

// A view of channels-last memory as (batch,channels,H,W); pixel_stride elements from one pixel to the next.
Tensor images_view(
    const void* data, const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
    int64_t pixel_stride);

}  // namespace convgru::cpu
