// Tensors of images, on any device: (...,C,H,W), whose memory is contiguous or channels last.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace convgru {

namespace stable = torch::stable;
using stable::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline std::vector<int64_t> sizes(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

// The same test as _is_channels_last in convgru_fused/ops.py.
inline bool is_channels_last(const Tensor& images) {
  return images.stride(images.dim() - 3) == 1;
}

// (...,H,W,C) as (...,C,H,W), without a copy.
inline Tensor channels_first_view(const Tensor& images) {
  const int64_t dim = images.dim();
  return stable::transpose(stable::transpose(images, dim - 2, dim - 1), dim - 3, dim - 2);
}

}  // namespace convgru
