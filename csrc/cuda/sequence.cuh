// A whole sequence in one kernel, for images of so few pixels that starting a kernel for every convolution
// would take longer than the convolutions (persistent RNNs, Diamos et al. 2016, carried over to
// convolutions).
//
// The convolutions of a step are phases: each has blocks of its own, and a block has the same columns and
// some of the tiles of rows in every step. It copies the weights of its columns to shared memory once; in a
// step it reads only pixels: kDepth channels of its rows and of those around them that the taps reach, which
// all taps then take from there. After every phase all blocks wait for each other.
#pragma once
#include <new>

#include "window.cuh"

namespace convgru::cuda {

// With more tiles of rows for a block there are pixels enough for a kernel for each convolution.
constexpr int kMostTilesOfBlock = 2;

// The tiles of one phase that belong to a block, and the weights for them.
template <class T, class Config, int kRingStages>
class BlockTiles {
 public:
  // Elements of shared memory: for the weights of a convolution,
  static int64_t weight_elements(const Convolution<T>& conv) {
    return int64_t{conv.all_pieces()} * kPieceElements;
  }
  // and besides for its taps, and the windows on their way or the sums.
  CONVGRU_HOST_DEVICE static int64_t ring_elements(const Convolution<T>& conv) {
    const int64_t ring = int64_t{kRingStages} * WindowShape<Config>(conv).elements();
    constexpr int64_t kSums = Config::kSumsBytes / sizeof(T);
    return BlockTaps::kElements + (ring > kSums ? ring : kSums);
  }

  // Tiles side by side.
  static int across(const Convolution<T>& conv) {
    return (conv.out + Config::kTileColumns - 1) / Config::kTileColumns;
  }

  // Of the blocks of the phase, `across` by `down`, this is number `block`. Starts to copy the weights: the
  // first wait for pixels waits for them too. Before a barrier.
  CONVGRU_DEVICE BlockTiles(const Convolution<T>& conv, int across, int block, int down, T* shared)
      : taps_(shared),
        ring_(shared + BlockTaps::kElements),
        weights_(shared + ring_elements(conv)),
        first_column_(block % across * Config::kTileColumns),
        first_row_(int64_t{block / across} * Config::kTileRows),
        rows_(conv.batch * conv.height * conv.width),
        row_step_(int64_t{down} * Config::kTileRows) {
    WeightLoader<T, Config> weights(conv, first_column_);
    const int pieces = conv.pieces_of_columns(first_column_);
    for (int piece = 0; piece < pieces; ++piece) weights.load_next(weights_ + piece * kPieceElements);
    copy_async_commit();
    taps_.find(conv, first_row_, row_step_);
  }

  template <class Epilogue>
  CONVGRU_DEVICE void run(const Phase<T, Epilogue>& phase) const {
    const Convolution<T>& conv = phase.conv;
    int tile = 0;
    for (int64_t row = first_row_; row < rows_; row += row_step_) {
      Products products;
      TileEpilogue<T, Config, Epilogue> epilogue(conv, phase.epilogue, row, first_column_);
      add_products(products, conv, phase.zeros, row, tile++, [&] { epilogue.fetch(); });
      epilogue.finish(products, ring_);
      __syncthreads();  // the ring is free for the next tile
    }
  }

 private:
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;
  using Products = typename Config::Products;
  using BlockTaps = Taps<T, Config, kMostTilesOfBlock>;

  template <class Meanwhile>
  CONVGRU_DEVICE void add_products(
      Products& products, const Convolution<T>& conv, bool zeros, int64_t first_row, int tile,
      const Meanwhile& meanwhile) const {
    // Read once; what a block does lies in shared memory.
    const int taps = conv.kernel_h * conv.kernel_w, window = WindowShape<Config>(conv).elements();
    typename BlockTaps::Rows tap_rows(taps_);
    tap_rows.read(tile);
    WindowLoader<T, Config> loader(conv, first_row);
    const auto load = [&](int, int to) { loader.load_next(ring_ + to * window); };
    const auto add = [&](int chunk, int at) {
      const T* const pixels = ring_ + at * window;
      const T* const weights = weights_ + chunk * taps * kPieceElements;
      // This thread's share of the steps of all taps.
      const int steps = steps_of<Products>(conv.channels_from(chunk));
      for (int i = Products::share(); i < taps * steps; i += Config::kShares) {
        const int tap = steps == 1 ? i : i / Products::kSteps, step = steps == 1 ? 0 : i % Products::kSteps;
        const T* rows[Products::kDown];
        tap_rows.at(tap, pixels, rows);
        products.add_step(rows, weights + tap * kPieceElements, step);
      }
    };
    const int chunks = zeros ? 0 : conv.pieces_of_columns(first_column_) / taps;
    add_pieces<kRingStages>(chunks, load, add, meanwhile);
    products.add_last();
  }

  BlockTaps taps_;
  T *ring_, *weights_;
  int first_column_;
  int64_t first_row_, rows_, row_step_;
};

// Room in front of a block's tiles for what the phase is, which all its threads read.
constexpr size_t kPhaseBytes = 512;

template <int kPhase, class Sequence>
CONVGRU_DEVICE auto* phase_in(void* shared, const Sequence& sequence) {
  using Type = decltype(sequence.template phase<kPhase>(0));
  static_assert(sizeof(Type) <= kPhaseBytes && alignof(Type) <= kCopyBytes);
  return static_cast<Type*>(shared);
}

template <class T, class Config, int kRingStages, class Sequence>
__global__ void __launch_bounds__(Config::kThreads, 1) sequence_kernel(
    const __grid_constant__ Sequence sequence, int across_first, int across_second, int down) {
  constexpr int kLast = Sequence::kPhases - 1;
  const int block = blockIdx.x, first_blocks = across_first * down;
  const bool is_first = block < first_blocks;
  unsigned char* const shared = dynamic_shared();
  auto* const first = phase_in<0>(shared, sequence);
  auto* const last = phase_in<kLast>(shared, sequence);
  // What this block does in the i-th step; some thread writes it down that has nothing else to do.
  const auto describe = [&](int64_t i) {
    if (threadIdx.x != Config::kThreads - 1) return;
    if (is_first)
      new (first) auto(sequence.template phase<0>(i));
    else
      new (last) auto(sequence.template phase<kLast>(i));
  };
  const BlockTiles<T, Config, kRingStages> tiles(
      sequence.convolutions[is_first ? 0 : kLast], is_first ? across_first : across_second,
      is_first ? block : block - first_blocks, down, reinterpret_cast<T*>(shared + kPhaseBytes));
  describe(0);
  __syncthreads();
  unsigned round = 0;
  for (int64_t i = 0; i < sequence.steps.count; ++i) {
    if (is_first) tiles.run(*first);
    if constexpr (kLast == 1) {
      sync_grid(sequence.meet, ++round, [] {});
      if (!is_first) tiles.run(*last);
    }
    if (i + 1 < sequence.steps.count) sync_grid(sequence.meet, ++round, [&] { describe(i + 1); });
  }
}

}  // namespace convgru::cuda
