#include "kernels.cuh"

namespace convgru::cuda {

bool suits_warpgroups(int64_t rows, int width, int kernel_h, int kernel_w, int64_t out) {
  if (!uses_warpgroups()) return false;
  using Config = WarpgroupConfig<bfloat16, kWarpgroupColumns>;
  Convolution<bfloat16> conv{};
  conv.width = width;
  conv.kernel_h = kernel_h;
  conv.kernel_w = kernel_w;
  if (!WindowRoom<bfloat16, Config>::suits(conv)) return false;
  if (WarpgroupRoom<bfloat16, Config>::bytes(conv) > shared_bytes_of_two_blocks()) return false;
  // Of tiles that are so large there have to be enough.
  const int64_t down = (rows + Config::kTileRows - 1) / Config::kTileRows;
  return down * ((out + kWarpgroupColumns - 1) / kWarpgroupColumns) >= multiprocessors() / 2;
}

CONVGRU_INSTANTIATE_CUDA(bfloat16)

}  // namespace convgru::cuda
