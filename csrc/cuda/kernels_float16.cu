#include "kernels.cuh"

namespace convgru::cuda {

CONVGRU_INSTANTIATE_CUDA(float16)

}  // namespace convgru::cuda
