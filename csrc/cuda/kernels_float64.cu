#include "kernels.cuh"

namespace convgru::cuda {

CONVGRU_INSTANTIATE_CUDA(double)

}  // namespace convgru::cuda
