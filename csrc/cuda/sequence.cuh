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

#include "convolution.cuh"

namespace convgru::cuda {

// With more tiles of rows for a block there are pixels enough for a kernel for each convolution.
constexpr int kMostTilesOfBlock = 2;

// Taps that a kernel has at most, a bit of a mask each.
constexpr int kMostTaps = 64;

// The tiles of one phase that belong to a block, and the weights for them.
template <class T, class Config, int kRingStages>
class BlockTiles {
 public:
  // Rows before and after a tile that the taps reach.
  CONVGRU_HOST_DEVICE static int halo(const Convolution<T>& conv) {
    return conv.kernel_h / 2 * conv.width + conv.kernel_w / 2;
  }
  // Elements of shared memory: for the weights of a convolution,
  static int64_t weight_elements(const Convolution<T>& conv) {
    return int64_t{conv.pieces(0)} * kPieceElements;
  }
  // and besides for what is known of its rows and taps, a row of zeros, and the pixels on their way or the
  // sums.
  CONVGRU_HOST_DEVICE static int64_t ring_elements(int halo) {
    const int64_t ring = int64_t{kRingStages} * stage_elements(halo);
    constexpr int64_t kSums = Config::kSumsBytes / sizeof(T);
    return kKnownElements + Config::kStrideA + (ring > kSums ? ring : kSums);
  }

  // Tiles side by side.
  static int across(const Convolution<T>& conv) {
    return (conv.out + Config::kTileColumns - 1) / Config::kTileColumns;
  }

  // Of the blocks of the phase, `across` by `down`, this is number `block`. Copies the weights.
  CONVGRU_DEVICE BlockTiles(const Convolution<T>& conv, int across, int block, int down, T* shared)
      : taps_of_rows_(reinterpret_cast<uint64_t*>(shared)),
        shifts_(reinterpret_cast<int*>(taps_of_rows_ + kMostRows)),
        zeros_(shared + kKnownElements),
        ring_(zeros_ + Config::kStrideA),
        weights_(shared + ring_elements(halo(conv))),
        first_column_(block % across * Config::kTileColumns),
        first_row_(int64_t{block / across} * Config::kTileRows),
        rows_(conv.batch * conv.height * conv.width),
        row_step_(int64_t{down} * Config::kTileRows) {
    for (int i = threadIdx.x; i < kMostRows; i += Config::kThreads)
      taps_of_rows_[i] =
          taps_of_row(conv, first_row_ + i / Config::kTileRows * row_step_ + i % Config::kTileRows);
    for (int tap = threadIdx.x; tap < conv.kernel_h * conv.kernel_w; tap += Config::kThreads) {
      const int dy = tap / conv.kernel_w - conv.kernel_h / 2, dx = tap % conv.kernel_w - conv.kernel_w / 2;
      shifts_[tap] = (dy * conv.width + dx) * Config::kStrideA;
    }
    for (int i = threadIdx.x; i < Config::kStrideA; i += Config::kThreads)
      zeros_[i] = narrow<T>(compute_t<T>(0));
    WeightLoader<T, Config> weights(conv, first_column_);
    for (int piece = 0; piece < conv.pieces(0); ++piece) weights.load_next(weights_ + piece * kPieceElements);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  }

  template <class Epilogue>
  CONVGRU_DEVICE void run(const Phase<T, Epilogue>& phase) const {
    const Convolution<T>& conv = phase.conv;
    const uint64_t* taps_of_rows = taps_of_rows_;
    for (int64_t row = first_row_; row < rows_; row += row_step_, taps_of_rows += Config::kTileRows) {
      Products products;
      TileEpilogue<T, Config, Epilogue> epilogue(conv, phase.epilogue, row, first_column_);
      add_products(products, conv, phase.zeros, row, taps_of_rows, [&] { epilogue.fetch(); });
      epilogue.finish(products, ring_);
      __syncthreads();  // the ring is free for the next tile
    }
  }

 private:
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;
  using Products = typename Config::Products;
  static constexpr int kDown = Products::kDown;
  static constexpr int kMostRows = kMostTilesOfBlock * Config::kTileRows;
  static constexpr int kKnownElements = (kMostRows * 8 + kMostTaps * 4) / static_cast<int>(sizeof(T));

  CONVGRU_HOST_DEVICE static int stage_elements(int halo) {
    return (Config::kTileRows + 2 * halo) * Config::kStrideA;
  }

  // Bit i: there is a pixel under the i-th tap.
  CONVGRU_DEVICE static uint64_t taps_of_row(const Convolution<T>& conv, int64_t row) {
    const Place place = place_of(conv, row);
    uint64_t taps = 0, bit = 1;
    for (int dy = -(conv.kernel_h / 2); dy <= conv.kernel_h / 2; ++dy)
      for (int dx = -(conv.kernel_w / 2); dx <= conv.kernel_w / 2; ++dx, bit <<= 1)
        if (place.has(dy, dx, conv.height, conv.width)) taps |= bit;
    return taps;
  }

  // What one thread loads of the pixels of a tile, kDepth channels after kDepth channels: of `count` rows
  // from first_row on, those of `rows` that there are.
  class RowLoader {
   public:
    CONVGRU_DEVICE RowLoader(const Source<T>& source, int64_t first_row, int count, int64_t rows)
        : source_(source), aligned_(is_aligned(source)), channel_(threadIdx.x % kVectors * kVector<T>) {
      const int64_t end = rows - first_row;
      first_ = first_row < 0 ? static_cast<int>(-first_row) : 0;
      end_ = end < count ? static_cast<int>(end) : count;
      from_ = (first_row + row()) * source.pixel_stride + channel_;
      to_ = row() * Config::kStrideA + channel_;
    }

    // Starts to copy the next ones.
    CONVGRU_DEVICE void load_next(T* stage) {
      const int left = channels_left<T>(source_.channels, channel_);
      int64_t from = from_;
      T* to = stage + to_;
      for (int i = row(); i < end_; i += kRowsAtOnce) {
        if (i >= first_) load_channels(source_.data + (left > 0 ? from : 0), left, aligned_, to);
        from += kRowsAtOnce * source_.pixel_stride;
        to += kRowsAtOnce * Config::kStrideA;
      }
      from_ += kDepth<T>;
      channel_ += kDepth<T>;
    }

   private:
    static constexpr int kVectors = kDepth<T> / kVector<T>, kRowsAtOnce = Config::kThreads / kVectors;

    CONVGRU_DEVICE static int row() { return threadIdx.x / kVectors; }

    Source<T> source_;
    bool aligned_;
    int channel_, first_, end_, to_;
    int64_t from_;  // the first pixel
  };

  // taps_of_rows: of the tile's rows.
  template <class Meanwhile>
  CONVGRU_DEVICE void add_products(
      Products& products, const Convolution<T>& conv, bool zeros, int64_t first_row,
      const uint64_t* taps_of_rows, const Meanwhile& meanwhile) const {
    // Read once; what a block does lies in shared memory.
    const int taps = conv.kernel_h * conv.kernel_w, around = halo(conv), stage = stage_elements(around);
    const int channels = conv.sources[0].channels;
    uint64_t taps_of_row[kDown];
#pragma unroll
    for (int i = 0; i < kDown; ++i) taps_of_row[i] = taps_of_rows[Products::row(i)];
    RowLoader loader(conv.sources[0], first_row - around, Config::kTileRows + 2 * around, rows_);
    const auto load = [&](int, int to) { loader.load_next(ring_ + to * stage); };
    const auto add = [&](int chunk, int at) {
      const T* const pixels = ring_ + at * stage + around * Config::kStrideA;
      const T* const weights = weights_ + chunk * taps * kPieceElements;
      // Those of the steps of a tap that have channels; this thread's share of all steps.
      static_assert(Products::kSteps <= 2);
      const bool all = channels - chunk * kDepth<T> > (Products::kSteps - 1) * Products::kStep;
      const int steps = all ? Products::kSteps : 1;
      for (int i = Products::share(); i < taps * steps; i += Config::kShares) {
        const int tap = all ? i / Products::kSteps : i, step = all ? i % Products::kSteps : 0;
        const int shift = shifts_[tap];
        const T* rows[kDown];
#pragma unroll
        for (int j = 0; j < kDown; ++j)
          rows[j] = taps_of_row[j] >> tap & 1 ? pixels + Products::row(j) * Config::kStrideA + shift : zeros_;
        products.add_step(rows, weights + tap * kPieceElements, step);
      }
    };
    const int chunks = zeros ? 0 : padded(channels, kDepth<T>) / kDepth<T>;
    add_pieces<kRingStages>(chunks, load, add, meanwhile);
    products.add_last();
  }

  uint64_t* taps_of_rows_;
  int* shifts_;
  T *zeros_, *ring_, *weights_;
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
    if (threadIdx.x != Config::kThreads - 1 || i == sequence.steps.count) return;
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
    sync_grid(sequence.meet, ++round, [&] { describe(i + 1); });
  }
}

}  // namespace convgru::cuda
