#include "kernels.cuh"

namespace convgru::cuda {

CONVGRU_INSTANTIATE_CUDA(float)

}  // namespace convgru::cuda
