// The CUDA backend on the CPU, for tests/test_cuda_kernels.py: what the harness adds to csrc/cuda.
#include "cuda_on_host.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Who goes first where the kernels leave it open.
EXPORT void cuda_on_host_seed(unsigned seed) {
  cuda_on_host::machine.seed = seed;
}

EXPORT void cuda_on_host_resident_blocks(int blocks) {
  cuda_on_host::machine.resident_blocks = blocks;
}

EXPORT void cuda_on_host_least_operations_of_library(double operations) {
  cuda_on_host::machine.least_operations_of_library = operations;
}

EXPORT void cuda_on_host_warpgroups(bool uses) {
  cuda_on_host::machine.warpgroups = uses;
}

EXPORT int cuda_on_host_cooperative_launches() {
  return cuda_on_host::machine.cooperative_launches;
}
