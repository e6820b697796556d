#include "kernels.cuh"

namespace convgru::cuda {

CONVGRU_INSTANTIATE_CUDA(bfloat16)

}  // namespace convgru::cuda
