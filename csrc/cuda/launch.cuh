// Starting kernels: on a stream of a GPU or, in the tests, on the CPU.
#pragma once
#include <algorithm>

#include "kernels.h"

#if !defined(CONVGRU_CUDA_ON_HOST)
#include <cuda_runtime.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#endif

namespace convgru::cuda {

struct Launch {
  dim3 grid;
  int threads;
  size_t shared_bytes;
  Stream stream;
  bool cooperative = false;  // all blocks are there at the same time
};

}  // namespace convgru::cuda

#if defined(CONVGRU_CUDA_ON_HOST)

namespace convgru::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  cuda_on_host::launch(how.cooperative, kernel, how.grid, dim3(how.threads), how.shared_bytes, arguments...);
}

constexpr size_t shared_bytes_of_two_blocks() {
  return size_t{113} << 10;  // sm_90's
}

inline bool uses_warpgroups() {
  return cuda_on_host::machine.warpgroups;
}

// As many as resident blocks.
inline int multiprocessors() {
  return std::max(1, cuda_on_host::machine.resident_blocks);
}

template <class... Parameters>
int resident_blocks(void (*)(Parameters...), int, size_t shared_bytes) {
  constexpr size_t kMostSharedBytesOfBlock = size_t{227} << 10;  // sm_90's
  return shared_bytes <= kMostSharedBytesOfBlock ? cuda_on_host::machine.resident_blocks : 0;
}

}  // namespace convgru::cuda

#else

namespace convgru::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// What is found out about a kernel on a device, and a number, once.
class Remembered {
 public:
  template <class F>
  int operator()(const void* kernel, int device, size_t number, const F& find_out) {
    const std::scoped_lock lock(mutex_);
    const Key key{{kernel, device}, number};
    const auto known = found_.find(key);
    return known != found_.end() ? known->second : found_[key] = find_out();
  }

 private:
  using Key = std::pair<std::pair<const void*, int>, size_t>;
  std::mutex mutex_;
  std::map<Key, int> found_;
};

inline int current_device() {
  int device;
  check(cudaGetDevice(&device));
  return device;
}

// Shared memory that a kernel gets without asking for more.
constexpr size_t kUsualSharedBytes = 48 << 10;

// Lets a kernel that needs more than that have all there is.
inline void allow_shared_bytes(const void* kernel, size_t bytes) {
  static Remembered allowed;
  if (bytes <= kUsualSharedBytes) return;
  allowed(kernel, current_device(), 0, [&] {
    int most;
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device()));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    return most;
  });
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  allow_shared_bytes(reinterpret_cast<const void*>(kernel), how.shared_bytes);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = &cooperative;
  config.numAttrs = how.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Shared memory at most, if a multiprocessor of the current GPU is to have two blocks at the same time.
inline size_t shared_bytes_of_two_blocks() {
  static Remembered bytes;
  const int device = current_device();
  return bytes(nullptr, device, 0, [&] {
    int all, reserved;
    check(cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
    check(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device));
    return all / 2 - reserved;
  });
}

// Whether convolutions are done by warpgroups if they suit: on Hopper, in a build for it (setup.py), if asked
// for.
inline bool uses_warpgroups() {
#if defined(CONVGRU_FOR_HOPPER)
  const char* asked = std::getenv("CONVGRU_FUSED_WGMMA");
  if (asked == nullptr || std::string(asked) != "1") return false;
  static Remembered hopper;
  const int device = current_device();
  return hopper(nullptr, device, 0, [&] {
           int major;
           check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
           return major == 9 ? 1 : 0;
         }) != 0;
#else
  return false;
#endif
}

// Of the current GPU.
inline int multiprocessors() {
  static Remembered count;
  const int device = current_device();
  return count(nullptr, device, 0, [&] {
    int all;
    check(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, device));
    return all;
  });
}

// Blocks of a kernel that the current GPU can have at the same time; 0 if it cannot have one.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  static Remembered blocks_of;
  const int device = current_device();
  return blocks_of(reinterpret_cast<const void*>(kernel), device, shared_bytes, [&] {
    int most_shared_bytes, blocks;
    check(cudaDeviceGetAttribute(&most_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (shared_bytes > static_cast<size_t>(most_shared_bytes)) return 0;
    allow_shared_bytes(reinterpret_cast<const void*>(kernel), shared_bytes);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
    return blocks * multiprocessors();
  });
}

}  // namespace convgru::cuda

#endif
