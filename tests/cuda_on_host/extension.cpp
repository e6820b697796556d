// The CUDA backend on the CPU, for tests/test_cuda_kernels.py: what the harness adds to csrc/cuda.
#include "cuda_on_host.h"

// Who goes first where the kernels leave it open.
extern "C" __attribute__((visibility("default"))) void cuda_on_host_seed(unsigned seed) {
  cuda_on_host::machine.seed = seed;
}
