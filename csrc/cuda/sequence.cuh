// A whole sequence in one kernel, for images of so few pixels that starting a kernel for every convolution
// would take longer than the convolutions (persistent RNNs, Diamos et al. 2016, carried over to
// convolutions).
//
// The convolutions of a step are phases: each has blocks of its own, and a block has the same columns and
// some of the tiles of rows in every step. It copies the weights of its columns to shared memory once; in a
// step it reads only pixels. After every phase all blocks wait for each other.
#pragma once
#include <new>

#include "convolution.cuh"

namespace convgru::cuda {

// The tiles of one phase that belong to a block, and the weights for them.
template <class T, class Config>
class BlockTiles {
 public:
  // Elements of shared memory that the weights of a convolution need.
  static constexpr int64_t weight_elements(int pieces) { return int64_t{pieces} * kPieceElements; }
  // Elements of shared memory besides, for the pixels on their way and the sums.
  static constexpr int64_t ring_elements() {
    constexpr int64_t kRing = int64_t{Config::kStages} * kStageElements;
    constexpr int64_t kSums =
        int64_t{Config::kTileRows} * Config::kSumsStride * sizeof(compute_t<T>) / sizeof(T);
    return kRing > kSums ? kRing : kSums;
  }

  // Tiles side by side.
  static int across(const Convolution<T>& conv) {
    return (conv.out + Config::kTileColumns - 1) / Config::kTileColumns;
  }

  // Of the blocks of the phase, `across` by `down`, this is number `block`. Copies the weights.
  CONVGRU_DEVICE BlockTiles(const Convolution<T>& conv, int across, int block, int down, T* shared)
      : ring_(shared),
        weights_(shared + ring_elements()),
        first_column_(block % across * Config::kTileColumns),
        first_row_(int64_t{block / across} * Config::kTileRows),
        rows_(conv.batch * conv.height * conv.width),
        row_step_(int64_t{down} * Config::kTileRows) {
    const Loader<T, Config> loader(conv, 0, first_column_);
    for (int piece = 0; piece < loader.pieces(); ++piece)
      loader.load_weights(piece, weights_ + weight_elements(piece));
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  template <class Epilogue>
  CONVGRU_DEVICE void run(const Phase<T, Epilogue>& phase) const {
    const Convolution<T>& conv = phase.conv;
    for (int64_t row = first_row_; row < rows_; row += row_step_) {
      const Loader<T, Config> loader(conv, row, first_column_);
      const auto left = [&](int piece) { return ring_ + piece % Config::kStages * kStageElements; };
      const auto right = [&](int piece) { return weights_ + weight_elements(piece); };
      const auto load = [&](int piece) { loader.load_input(piece, left(piece)); };
      typename Config::Products products;
      TileEpilogue<T, Config, Epilogue> epilogue(conv, phase.epilogue, row, first_column_);
      const int pieces = phase.zeros ? 0 : loader.pieces();
      add_pieces<Config>(products, pieces, load, left, right, [&] { epilogue.fetch(); });
      epilogue.finish(products, ring_);
      __syncthreads();  // the ring is free for the next tile
    }
  }

 private:
  static constexpr int kStageElements = Config::kTileRows * Config::kStrideA;
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;

  T *ring_, *weights_;
  int first_column_;
  int64_t first_row_, rows_, row_step_;
};

// Room in front of a block's tiles for what the phase is, which all its threads read.
constexpr size_t kPhaseBytes = 512;

template <int kPhase, class Sequence>
CONVGRU_DEVICE const auto& phase_in_shared(const Sequence& sequence, int64_t i, void* shared) {
  using Type = decltype(sequence.template phase<kPhase>(i));
  static_assert(sizeof(Type) <= kPhaseBytes && alignof(Type) <= kCopyBytes);
  if (threadIdx.x == 0) new (shared) Type(sequence.template phase<kPhase>(i));
  __syncthreads();
  return *static_cast<const Type*>(shared);
}

template <class T, class Config, class Sequence>
__global__ void __launch_bounds__(Config::kThreads, 1) sequence_kernel(
    const __grid_constant__ Sequence sequence, int across_first, int across_second, int down) {
  const int block = blockIdx.x, first_blocks = across_first * down;
  const bool is_first = block < first_blocks;
  unsigned char* const shared = dynamic_shared();
  const BlockTiles<T, Config> tiles(
      sequence.convolutions[is_first ? 0 : Sequence::kPhases - 1], is_first ? across_first : across_second,
      is_first ? block : block - first_blocks, down, reinterpret_cast<T*>(shared + kPhaseBytes));
  unsigned round = 0;
  for (int64_t i = 0; i < sequence.steps.count; ++i) {
    if (is_first) tiles.run(phase_in_shared<0>(sequence, i, shared));
    sync_grid(sequence.meet, ++round);
    if constexpr (Sequence::kPhases == 2) {
      if (!is_first) tiles.run(phase_in_shared<1>(sequence, i, shared));
      sync_grid(sequence.meet, ++round);
    }
  }
}

}  // namespace convgru::cuda
