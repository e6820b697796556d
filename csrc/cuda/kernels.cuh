// The functions of kernels.h. Each kernels_*.cu has those of one type, so that they compile side by side.
#pragma once
#include <algorithm>

#include "convolution.cuh"
#include "launch.cuh"

namespace convgru::cuda {

// Blocks for a kernel that goes over `count` elements by for_all.
inline dim3 blocks_for(int64_t count) {
  constexpr int64_t kMost = 1 << 16;
  return dim3(
      static_cast<unsigned>(std::clamp<int64_t>((count + kElementThreads - 1) / kElementThreads, 1, kMost)));
}

template <class T>
void pack(const Weights<T>& weights, T* packed, Stream stream) {
  const int64_t size = weights.packed_size();
  launch(
      pack_kernel<T>, blocks_for(size), kElementThreads, 0, stream, weights, weights.columns(), size, packed);
}

// What every architecture from sm_80 on lets a block have.
constexpr size_t kMostSharedBytes = 99 << 10;

template <class Config, class T, class Epilogue>
void convolve_by(const Convolution<T>& conv, const Epilogue& epilogue, Stream stream) {
  static_assert(Config::shared_bytes() <= kMostSharedBytes);
  const int64_t rows = conv.batch * conv.height * conv.width;
  const dim3 grid(
      static_cast<unsigned>((rows + Config::kTileRows - 1) / Config::kTileRows),
      static_cast<unsigned>(conv.columns / Config::kTileColumns));
  launch(
      convolve_kernel<T, Config, Epilogue>, grid, Config::kThreads, Config::shared_bytes(), stream, conv,
      epilogue);
}

template <class T, template <class> class Epilogue>
void convolve(const Convolution<T>& conv, const Epilogue<T>& epilogue, Stream stream) {
  constexpr int kTileColumns = kThreeGates<Epilogue<T>> ? kCudnnColumns : kColumns;
  if constexpr (sizeof(T) == 2) {
    convolve_by<MatrixConfig<T, kTileColumns>>(conv, epilogue, stream);
  } else {
    if constexpr (sizeof(T) == 4) {
      if (conv.tf32) return convolve_by<MatrixConfig<T, kTileColumns>>(conv, epilogue, stream);
    }
    convolve_by<PlainConfig<T, kTileColumns>>(conv, epilogue, stream);
  }
}

template <class T, template <class> class Epilogue>
void without_sums(int64_t rows, int channels, const Epilogue<T>& epilogue, Stream stream) {
  launch(
      without_sums_kernel<T, Epilogue<T>>, blocks_for(rows * channels), kElementThreads, 0, stream, rows,
      channels, epilogue);
}

template <class T>
void previous_states(const PreviousStates<T>& args, Stream stream) {
  launch(
      previous_states_kernel<T>, blocks_for(args.steps * args.samples * args.image), kElementThreads, 0,
      stream, args);
}

template <class T>
void valid_images(const ValidImages<T>& args, Stream stream) {
  launch(
      valid_images_kernel<T>, blocks_for(args.steps * args.samples * args.image), kElementThreads, 0, stream,
      args);
}

#define CONVGRU_INSTANTIATE_EPILOGUE(T, Epilogue)                                         \
  template void convolve<T, Epilogue>(const Convolution<T>&, const Epilogue<T>&, Stream); \
  template void without_sums<T, Epilogue>(int64_t, int, const Epilogue<T>&, Stream);

#define CONVGRU_INSTANTIATE_CUDA(T)                                   \
  template void pack<T>(const Weights<T>&, T*, Stream);               \
  template void previous_states<T>(const PreviousStates<T>&, Stream); \
  template void valid_images<T>(const ValidImages<T>&, Stream);       \
  CONVGRU_INSTANTIATE_EPILOGUE(T, StoreSums)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdate)                        \
  CONVGRU_INSTANTIATE_EPILOGUE(T, Candidate)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStep)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CandidateBackward)                  \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdateBackward)                \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStepBackward)

}  // namespace convgru::cuda
