// Starting kernels: on a stream of a GPU or, in the tests, on the CPU.
#pragma once
#include "kernels.h"

#if defined(CONVGRU_CUDA_ON_HOST)

namespace convgru::cuda {

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream,
    const Arguments&... arguments) {
  cuda_on_host::launch(/*cooperative=*/false, kernel, grid, dim3(threads), shared_bytes, arguments...);
}

}  // namespace convgru::cuda

#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace convgru::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Shared memory that a kernel gets without asking for more.
constexpr size_t kUsualSharedBytes = 48 << 10;

template <class... Parameters, class... Arguments>
void launch(
    void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Stream stream,
    const Arguments&... arguments) {
  if (shared_bytes > kUsualSharedBytes)
    check(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace convgru::cuda

#endif
