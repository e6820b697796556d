// The functions of kernels.h. Each kernels_*.cu has those of one type, so that they compile side by side.
#pragma once
#include <algorithm>

#include "launch.cuh"
#include "sequence.cuh"

namespace convgru::cuda {

// Blocks for a kernel that goes over `count` elements by for_all.
inline dim3 blocks_for(int64_t count) {
  constexpr int64_t kMost = 1 << 16;
  return dim3(
      static_cast<unsigned>(std::clamp<int64_t>((count + kElementThreads - 1) / kElementThreads, 1, kMost)));
}

template <class T>
void pack(const Packing<T>& packing, Stream stream) {
  int64_t size = 0;
  for (int i = 0; i < packing.count; ++i) size += packing.parts[i].size;
  launch(pack_kernel<T>, Launch{blocks_for(size), kElementThreads, 0, stream}, packing);
}

// What every architecture from sm_80 on lets a block have.
constexpr size_t kMostSharedBytes = 99 << 10;

// With a window warps have 32 columns and more, so that a factor that they read is used for many products.
template <class T, int kTileColumns>
using WindowConfig = MatrixConfig<
    T, kTileColumns, MatrixShape{.warps = 4, .stages = 4, .blocks = kTileColumns == kColumns ? 3 : 2}>;

template <class Config, class T>
int64_t tiles_down(const Convolution<T>& conv) {
  return (conv.batch * conv.height * conv.width + Config::kTileRows - 1) / Config::kTileRows;
}
template <class Config, class T, class Epilogue>
void convolve_by(
    void (*kernel)(Convolution<T>, Epilogue), size_t shared_bytes, const Convolution<T>& conv,
    const Epilogue& epilogue, Stream stream) {
  const dim3 grid(
      static_cast<unsigned>(tiles_down<Config>(conv)),
      static_cast<unsigned>(conv.columns / Config::kTileColumns));
  launch(kernel, Launch{grid, Config::kThreads, shared_bytes, stream}, conv, epilogue);
}

template <class Config, class T, class Epilogue>
void convolve_by_pieces(const Convolution<T>& conv, const Epilogue& epilogue, Stream stream) {
  static_assert(Config::shared_bytes() <= kMostSharedBytes);
  convolve_by<Config>(convolve_kernel<T, Config, Epilogue>, Config::shared_bytes(), conv, epilogue, stream);
}

template <class T, template <class> class Epilogue>
void convolve(const Convolution<T>& conv, const Epilogue<T>& epilogue, Stream stream) {
  constexpr int kTileColumns = kThreeGates<Epilogue<T>> ? kCudnnColumns : kColumns;
  if constexpr (sizeof(T) <= 4) {
    if (sizeof(T) == 2 || conv.tf32) {
      using Windowed = WindowConfig<T, kTileColumns>;
      using Room = WindowRoom<T, Windowed>;
      if (Room::suits(conv) && Room::bytes(conv) <= shared_bytes_of_two_blocks())
        return convolve_by<Windowed>(
            convolve_window_kernel<T, Windowed, Epilogue<T>>, Room::bytes(conv), conv, epilogue, stream);
      return convolve_by_pieces<MatrixConfig<T, kTileColumns>>(conv, epilogue, stream);
    }
  }
  if constexpr (sizeof(T) >= 4) convolve_by_pieces<PlainConfig<T, kTileColumns>>(conv, epilogue, stream);
}

template <class Config, int kRingStages, class T, template <class> class Sequence>
SequencePlan plan_sequence(const Sequence<T>& sequence) {
  using Tiles = BlockTiles<T, Config, kRingStages>;
  const Convolution<T>& conv = sequence.convolutions[0];
  SequencePlan plan{};
  if (conv.kernel_h * conv.kernel_w > kMostTaps) return plan;
  plan.threads = Config::kThreads;
  plan.stages = kRingStages;
  int64_t weight_elements = 0;
  for (int p = 0; p < Sequence<T>::kPhases; ++p) {
    plan.across[p] = Tiles::across(sequence.convolutions[p]);
    weight_elements = std::max(weight_elements, Tiles::weight_elements(sequence.convolutions[p]));
  }
  plan.shared_bytes = kPhaseBytes + (Tiles::ring_elements(conv) + weight_elements) * sizeof(T);
  const int64_t row_tiles = tiles_down<Config>(conv);
  const int blocks = resident_blocks(
      sequence_kernel<T, Config, kRingStages, Sequence<T>>, Config::kThreads, plan.shared_bytes);
  const int64_t down = std::min<int64_t>(row_tiles, blocks / (plan.across[0] + plan.across[1]));
  if (row_tiles <= kMostTilesOfBlock * down) plan.down = static_cast<int>(down);
  return plan;
}

// Two warps for a tile, 32 rows each, so that a factor that they read is used for many products; the depth is
// shared by four of these pairs.
template <class T, int kTileColumns>
using SequenceMatrixConfig = MatrixConfig<T, kTileColumns, MatrixShape{.warps_across = 1, .shares = 4}>;

// Stages of the ring of pixels: many in 16 bits, if they fit, for the wait for the first of them is long.
constexpr int kManyStages = 6, kFewStages = 3;

// Calls f with a type that says how, and the plan, if the sequence can be one kernel.
template <class T, template <class> class Sequence, class F>
bool with_sequence_plan(const Sequence<T>& sequence, const F& f) {
  using First = decltype(sequence.template phase<0>(0).epilogue);
  constexpr int kTileColumns = kThreeGates<First> ? 3 * kCudnnGroup : kColumns / 2;
  const auto try_stages = [&]<class Config, int kStages>() {
    const SequencePlan plan = plan_sequence<Config, kStages>(sequence);
    if (plan.down == 0) return false;
    f(sequence_kernel<T, Config, kStages, Sequence<T>>, plan);
    return true;
  };
  const auto try_config = [&]<class Config>() {
    if constexpr (sizeof(T) == 2)
      if (try_stages.template operator()<Config, kManyStages>()) return true;
    return try_stages.template operator()<Config, kFewStages>();
  };
  if constexpr (sizeof(T) <= 4) {
    if (sizeof(T) == 2 || sequence.convolutions[0].tf32)
      return try_config.template operator()<SequenceMatrixConfig<T, kTileColumns>>();
  }
  if constexpr (sizeof(T) >= 4) return try_config.template operator()<PlainConfig<T, kTileColumns>>();
  return false;
}

template <class T, template <class> class Sequence>
SequencePlan sequence_plan(const Sequence<T>& sequence) {
  SequencePlan found{};
  with_sequence_plan(sequence, [&](auto, const SequencePlan& plan) { found = plan; });
  return found;
}

template <class T, template <class> class Sequence>
void run_sequence(const Sequence<T>& sequence, Stream stream) {
  with_sequence_plan(sequence, [&](auto kernel, const SequencePlan& plan) {
    const dim3 grid(static_cast<unsigned>(plan.blocks()));
    launch(
        kernel, Launch{grid, plan.threads, plan.shared_bytes, stream, /*cooperative=*/true}, sequence,
        plan.across[0], plan.across[1], plan.down);
  });
}

template <class T, template <class> class Epilogue>
void elementwise(int64_t rows, int channels, const T* sums, const Epilogue<T>& epilogue, Stream stream) {
  const dim3 blocks = blocks_for(rows * ((channels + kVector<T> - 1) / kVector<T>));
  launch(
      elementwise_kernel<T, Epilogue<T>>, Launch{blocks, kElementThreads, 0, stream}, rows, channels, sums,
      epilogue);
}

template <class T>
void previous_states(const PreviousStates<T>& args, Stream stream) {
  const dim3 blocks = blocks_for(args.steps * args.samples * args.image);
  launch(previous_states_kernel<T>, Launch{blocks, kElementThreads, 0, stream}, args);
}

template <class T>
void valid_images(const ValidImages<T>& args, Stream stream) {
  const dim3 blocks = blocks_for(args.steps * args.samples * args.image);
  launch(valid_images_kernel<T>, Launch{blocks, kElementThreads, 0, stream}, args);
}

template <class T>
void transpose(const Transposes<T>& all, Stream stream) {
  constexpr size_t kSharedBytes = kTransposeTile * kTransposeStride<T> * sizeof(T);
  constexpr int64_t kMostBlocks = INT32_MAX;  // of a grid
  Transposes<T> some{};
  int64_t blocks = 0;
  const auto start = [&] {
    if (blocks > 0)
      launch(
          transpose_kernel<T>,
          Launch{dim3(static_cast<unsigned>(blocks)), kElementThreads, kSharedBytes, stream}, some);
    some.count = 0;
    blocks = 0;
  };
  for (int i = 0; i < all.count; ++i) {
    Transpose<T> rest = all.each[i];
    const int64_t of_matrix = transpose_tiles_down(rest) * transpose_tiles_across(rest);
    const int64_t most = std::max<int64_t>(1, kMostBlocks / of_matrix), matrix = rest.rows * rest.columns;
    while (rest.batch > 0) {
      Transpose<T> part = rest;
      part.batch = std::min(most, rest.batch);
      if (some.count == Transposes<T>::kMost || blocks + part.batch * of_matrix > kMostBlocks) start();
      some.each[some.count++] = part;
      blocks += part.batch * of_matrix;
      rest.batch -= part.batch;
      rest.from += part.batch * matrix;
      rest.to += part.batch * matrix;
    }
  }
  start();
}

#define CONVGRU_INSTANTIATE_EPILOGUE(T, Epilogue)                                         \
  template void convolve<T, Epilogue>(const Convolution<T>&, const Epilogue<T>&, Stream); \
  template void elementwise<T, Epilogue>(int64_t, int, const T*, const Epilogue<T>&, Stream);

#define CONVGRU_INSTANTIATE_CUDA(T)                                   \
  template void pack<T>(const Packing<T>&, Stream);                   \
  template SequencePlan sequence_plan<T>(const GruRcnForward<T>&);    \
  template void run_sequence<T>(const GruRcnForward<T>&, Stream);     \
  template SequencePlan sequence_plan<T>(const CudnnForward<T>&);     \
  template void run_sequence<T>(const CudnnForward<T>&, Stream);      \
  template SequencePlan sequence_plan<T>(const GruRcnBackward<T>&);   \
  template void run_sequence<T>(const GruRcnBackward<T>&, Stream);    \
  template SequencePlan sequence_plan<T>(const CudnnBackward<T>&);    \
  template void run_sequence<T>(const CudnnBackward<T>&, Stream);     \
  template void previous_states<T>(const PreviousStates<T>&, Stream); \
  template void valid_images<T>(const ValidImages<T>&, Stream);       \
  template void transpose<T>(const Transposes<T>&, Stream);           \
  CONVGRU_INSTANTIATE_EPILOGUE(T, StoreSums)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdate)                        \
  CONVGRU_INSTANTIATE_EPILOGUE(T, Candidate)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStep)                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CandidateBackward)                  \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdateBackward)                \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStepBackward)

}  // namespace convgru::cuda
