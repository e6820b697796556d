// Where a call runs: the device of its tensors and PyTorch's current stream there; in the tests, the CPU.
#pragma once
#include "../tensors.h"
#include "kernels.h"

#if !defined(CONVGRU_CUDA_ON_HOST)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>  // with USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif

namespace convgru::cuda {

// From so many operations of the hidden convolutions of a step on, PyTorch's library does them. A single step
// is one of a loop, most likely: that waits for the host, which takes longer to call the library. Whether it
// is captured in a graph makes no difference: what is captured must be what ran before, to warm up, for the
// library cannot look for its fastest algorithm while a graph is captured (torch.backends.cudnn.benchmark).
#if defined(CONVGRU_CUDA_ON_HOST)
inline double least_operations_of_library(int64_t) {
  return cuda_on_host::machine.least_operations_of_library;
}
#else
constexpr double least_operations_of_library(int64_t steps) {
  return steps > 1 ? 6e8 : 5e9;
}
#endif

// Makes the device of a tensor the current one while it lives.
class OnDevice {
 public:
#if defined(CONVGRU_CUDA_ON_HOST)
  explicit OnDevice(const Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}
  Stream stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace convgru::cuda
