// Tensors of images, on any device: (...,C,H,W), whose memory is contiguous or channels last.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

using Shape = std::vector<int64_t>;

inline Shape sizes(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}
inline Shape strides(const Tensor& tensor) {
  return {tensor.strides().begin(), tensor.strides().end()};
}

// Of dense memory, the last dimension innermost.
inline Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  return strides;
}

// What is below calls PyTorch directly: by its dispatcher, as the functions of torch::stable do, it takes
// several times as long, and a cell has dozens of these.

// Uninitialised, contiguous, of the type and on the device of another.
inline Tensor new_tensor(const Tensor& like, const Shape& shape) {
  int32_t type, device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), contiguous_strides(shape).data(), type, device_type,
      device_index, &handle));
  return Tensor(handle);
}

// The memory of a tensor from its element number `first` on, in another shape.
inline Tensor reshaped(const Tensor& tensor, const Shape& shape, const Shape& strides, int64_t first = 0) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      tensor.get(), static_cast<int64_t>(shape.size()), shape.data(), strides.data(), first, &handle));
  return Tensor(handle);
}

// The same of a contiguous tensor, to be contiguous again.
inline Tensor reshaped(const Tensor& tensor, const Shape& shape, int64_t first = 0) {
  return reshaped(tensor, shape, contiguous_strides(shape), first);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : stable::contiguous(tensor);
}

// The same test as _is_channels_last in convgru_fused/ops.py.
inline bool is_channels_last(const Tensor& images) {
  return images.stride(images.dim() - 3) == 1;
}

// (...,C,H,W) as (...,H,W,C), without a copy ...
inline Tensor channels_last_view(const Tensor& images) {
  Shape shape = sizes(images), steps = strides(images);
  std::rotate(shape.end() - 3, shape.end() - 2, shape.end());
  std::rotate(steps.end() - 3, steps.end() - 2, steps.end());
  return reshaped(images, shape, steps);
}

// ... and back.
inline Tensor channels_first_view(const Tensor& images) {
  Shape shape = sizes(images), steps = strides(images);
  std::rotate(shape.end() - 3, shape.end() - 1, shape.end());
  std::rotate(steps.end() - 3, steps.end() - 1, steps.end());
  return reshaped(images, shape, steps);
}

}  // namespace convgru
