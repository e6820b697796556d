// The functions of kernels.h. Each kernels_*.cu has those of one type, so that they compile side by side.
#pragma once
#include <algorithm>

#include "launch.cuh"
#include "sequence.cuh"
#include "warpgroup.cuh"

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
// Of the output channels.
template <class Config, class T>
int tiles_across(const Convolution<T>& conv) {
  return (conv.out + Config::kTileColumns - 1) / Config::kTileColumns;
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

template <class T, class Epilogue>
void convolve_by_warpgroups(const Convolution<T>& conv, const Epilogue& epilogue, Stream stream) {
  const auto by = [&]<int kTileColumns>() {
    using Config = WarpgroupConfig<T, kTileColumns>;
    convolve_by<Config>(
        convolve_warpgroups_kernel<T, Config, Epilogue>, WarpgroupRoom<T, Config>::bytes(conv), conv,
        epilogue, stream);
  };
  if constexpr (kThreeGates<Epilogue>)
    by.template operator()<kCudnnColumns>();
  else if (warpgroup_columns(conv.columns, false) == kWarpgroupColumns)
    by.template operator()<kWarpgroupColumns>();
  else
    by.template operator()<kColumns>();
}

template <class T, template <class> class Epilogue>
void convolve(const Convolution<T>& conv, const Epilogue<T>& epilogue, Stream stream) {
  constexpr int kTileColumns = kThreeGates<Epilogue<T>> ? kCudnnColumns : kColumns;
  if constexpr (sizeof(T) == 2)
    if (conv.by_warpgroups) return convolve_by_warpgroups(conv, epilogue, stream);
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

// How a kernel for a sequence divides the phases of a step and their depth.
template <class FirstConfig, class LastConfig, class RingOfWindows>
struct SequenceConfig {
  using First = FirstConfig;
  using Last = LastConfig;
  using Ring = RingOfWindows;

  template <class T, class Sequence>
  static constexpr auto* kernel() {
    return sequence_kernel<T, First, Last, Ring, Sequence>;
  }
};

// A warp has 32 rows and all columns up to 48, of wider tiles half of them, so that a factor that it reads is
// used for many products; groups of warps share the depth.
template <int kTileColumns>
constexpr MatrixShape kSequenceShape = kTileColumns <= 48 ? MatrixShape{.warps_across = 1, .shares = 4}
                                                          : MatrixShape{.warps_across = 2, .shares = 2};
template <class T, int kTileColumns>
using SequenceMatrixConfig = MatrixConfig<T, kTileColumns, kSequenceShape<kTileColumns>>;

// Calls f(number, config) for every configuration that a sequence can have, those of narrow tiles first. Of
// "gru-rcn" forward the first convolution has about twice the columns of the last.
template <class T, template <class> class Sequence, class F>
void for_sequence_configs(bool tf32, const F& f) {
  constexpr bool kGruRcnForward = std::is_same_v<Sequence<T>, GruRcnForward<T>>;
  constexpr bool kCudnnForward = std::is_same_v<Sequence<T>, CudnnForward<T>>;
  using InParts = RingShape<3, kDepth<T>>;
  int number = 0;
  const auto matrix = [&]<int kTileColumns, class Ring = RingShape<1, 0>>() {
    constexpr int kFirst = kGruRcnForward ? 2 * kTileColumns : kTileColumns;
    using First = SequenceMatrixConfig<T, kFirst>;
    using Last = SequenceMatrixConfig<T, kTileColumns>;
    f(number++, SequenceConfig<First, Last, Ring>{});
  };
  // The depth in the order of the kernels for each convolution.
  const auto plain = [&]<int kTileColumns>() {
    constexpr int kFirst = kGruRcnForward ? 2 * kTileColumns : kTileColumns;
    using First = PlainConfig<T, kFirst>;
    using Last = PlainConfig<T, kTileColumns>;
    f(number++, SequenceConfig<First, Last, InParts>{});
  };
  if constexpr (sizeof(T) <= 4) {
    if (sizeof(T) == 2 || tf32) {
      constexpr int kNarrowest = kCudnnForward ? 3 * kCudnnGroup : 8;
      matrix.template operator()<kNarrowest>();
      // Where these weights leave too little room for whole windows, those of wider tiles would not fit.
      matrix.template operator()<kNarrowest, InParts>();
      if constexpr (!kCudnnForward) {
        matrix.template operator()<16>();
        matrix.template operator()<32>();
      }
      return;
    }
  }
  if constexpr (sizeof(T) >= 4) plain.template operator()<kCudnnForward ? 3 * kCudnnGroup : 16>();
}

template <class Config, class T, template <class> class Sequence>
SequencePlan plan_sequence(const Sequence<T>& sequence) {
  SequencePlan plan{};
  const Convolution<T>& conv = sequence.convolutions[0];
  if (conv.kernel_h * conv.kernel_w > kMostTaps) return plan;
  using First = typename Config::First;
  using Last = typename Config::Last;
  plan.threads = First::kThreads;
  plan.columns[0] = First::kTileColumns;
  plan.columns[1] = Last::kTileColumns;
  plan.stages = Config::Ring::kStages;
  plan.across[0] = tiles_across<First>(conv);
  if (Sequence<T>::kPhases == 2) plan.across[1] = tiles_across<Last>(sequence.convolutions[1]);
  plan.shared_bytes = SequenceRoom<T, First, Last, typename Config::Ring, Sequence<T>>(sequence).bytes();
  const int64_t row_tiles = tiles_down<First>(conv);
  const int blocks =
      resident_blocks(Config::template kernel<T, Sequence<T>>(), plan.threads, plan.shared_bytes);
  const int64_t down = std::min<int64_t>(row_tiles, blocks / std::max(plan.across[0], plan.across[1]));
  if (row_tiles > kMostTilesOfBlock * down) return plan;
  plan.down = static_cast<int>(down);
  plan.tiles = static_cast<int>((row_tiles + down - 1) / down);
  return plan;
}

// That by which a multiprocessor has the fewest tiles to work on, one after the other.
template <class T, template <class> class Sequence>
SequencePlan sequence_plan(const Sequence<T>& sequence) {
  const Convolution<T>& conv = sequence.convolutions[0];
  const int processors = multiprocessors();
  SequencePlan best{};
  int fewest = 0;
  for_sequence_configs<T, Sequence>(conv.tf32, [&]<class Config>(int number, Config) {
    if (fewest == 1) return;  // there is nothing better
    SequencePlan plan = plan_sequence<Config>(sequence);
    if (plan.down == 0) return;
    plan.config = number;
    const int tiles = plan.tiles * ((plan.blocks() + processors - 1) / processors);
    if (best.down > 0 && tiles >= fewest) return;
    best = plan;
    fewest = tiles;
  });
  return best;
}

template <class T, template <class> class Sequence>
void run_sequence(const Sequence<T>& sequence, const SequencePlan& plan, Stream stream) {
  const Launch how{
      dim3(static_cast<unsigned>(plan.blocks())), plan.threads, plan.shared_bytes, stream,
      /*cooperative=*/true};
  for_sequence_configs<T, Sequence>(sequence.convolutions[0].tf32, [&]<class Config>(int number, Config) {
    if (number == plan.config)
      launch(
          Config::template kernel<T, Sequence<T>>(), how, sequence, plan.across[0], plan.across[1],
          plan.down);
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

#define CONVGRU_INSTANTIATE_CUDA(T)                                                     \
  template void pack<T>(const Packing<T>&, Stream);                                     \
  template SequencePlan sequence_plan<T>(const GruRcnForward<T>&);                      \
  template void run_sequence<T>(const GruRcnForward<T>&, const SequencePlan&, Stream);  \
  template SequencePlan sequence_plan<T>(const CudnnForward<T>&);                       \
  template void run_sequence<T>(const CudnnForward<T>&, const SequencePlan&, Stream);   \
  template SequencePlan sequence_plan<T>(const GruRcnBackward<T>&);                     \
  template void run_sequence<T>(const GruRcnBackward<T>&, const SequencePlan&, Stream); \
  template SequencePlan sequence_plan<T>(const CudnnBackward<T>&);                      \
  template void run_sequence<T>(const CudnnBackward<T>&, const SequencePlan&, Stream);  \
  template void previous_states<T>(const PreviousStates<T>&, Stream);                   \
  template void valid_images<T>(const ValidImages<T>&, Stream);                         \
  template void transpose<T>(const Transposes<T>&, Stream);                             \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdate)                                          \
  CONVGRU_INSTANTIATE_EPILOGUE(T, Candidate)                                            \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStep)                                            \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CandidateBackward)                                    \
  CONVGRU_INSTANTIATE_EPILOGUE(T, ResetUpdateBackward)                                  \
  CONVGRU_INSTANTIATE_EPILOGUE(T, CudnnStepBackward)

}  // namespace convgru::cuda
