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
  // and besides for the places of its rows, a row of zeros, and the pixels on their way or the sums.
  CONVGRU_HOST_DEVICE static int64_t ring_elements(int halo) {
    const int64_t ring = int64_t{kRingStages} * stage_elements(halo);
    constexpr int64_t kSums = Config::kSumsBytes / sizeof(T);
    return kPlaceElements + Config::kStrideA + (ring > kSums ? ring : kSums);
  }

  // Tiles side by side.
  static int across(const Convolution<T>& conv) {
    return (conv.out + Config::kTileColumns - 1) / Config::kTileColumns;
  }

  // Of the blocks of the phase, `across` by `down`, this is number `block`. Copies the weights.
  CONVGRU_DEVICE BlockTiles(const Convolution<T>& conv, int across, int block, int down, T* shared)
      : places_(reinterpret_cast<Place*>(shared)),
        zeros_(shared + kPlaceElements),
        ring_(zeros_ + Config::kStrideA),
        weights_(shared + ring_elements(halo(conv))),
        first_column_(block % across * Config::kTileColumns),
        first_row_(int64_t{block / across} * Config::kTileRows),
        rows_(conv.batch * conv.height * conv.width),
        row_step_(int64_t{down} * Config::kTileRows) {
    for (int i = threadIdx.x; i < kMostTilesOfBlock * Config::kTileRows; i += Config::kThreads) {
      const int64_t row = first_row_ + i / Config::kTileRows * row_step_ + i % Config::kTileRows;
      places_[i] = place_of(conv, row);
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
    const Place* places = places_;
    for (int64_t row = first_row_; row < rows_; row += row_step_, places += Config::kTileRows) {
      Products products;
      TileEpilogue<T, Config, Epilogue> epilogue(conv, phase.epilogue, row, first_column_);
      add_products(products, conv, phase.zeros, row, places, [&] { epilogue.fetch(); });
      epilogue.finish(products, ring_);
      __syncthreads();  // the ring is free for the next tile
    }
  }

 private:
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;
  using Products = typename Config::Products;
  static constexpr int kDown = Products::kDown;
  // Steps of the depth that a share has in a tap, at most.
  static constexpr int kTurns = (Products::kSteps + Config::kShares - 1) / Config::kShares;

  static constexpr int kPlaceElements = kMostTilesOfBlock * Config::kTileRows * sizeof(Place) / sizeof(T);

  CONVGRU_HOST_DEVICE static int stage_elements(int halo) {
    return (Config::kTileRows + 2 * halo) * Config::kStrideA;
  }

  template <class Meanwhile>
  CONVGRU_DEVICE void add_products(
      Products& products, const Convolution<T>& conv, bool zeros, int64_t first_row, const Place* places,
      const Meanwhile& meanwhile) const {
    // Read once; what a block does lies in shared memory.
    const int taps_down = conv.kernel_h, taps_across = conv.kernel_w, around = halo(conv);
    const int height = conv.height, width = conv.width, channels = conv.sources[0].channels;
    Place place[kDown];
#pragma unroll
    for (int i = 0; i < kDown; ++i) place[i] = places[Products::row(i)];
    const auto load = [&](int chunk, int stage) {
      load_rows(
          conv.sources[0], first_row - around, Config::kTileRows + 2 * around, chunk,
          ring_ + stage * stage_elements(around));
    };
    const auto add = [&](int chunk, int stage) {
      const T* const pixels = ring_ + stage * stage_elements(around) + around * Config::kStrideA;
      const T* weights = weights_ + chunk * taps_down * taps_across * kPieceElements;
      const int left = (channels - chunk * kDepth<T> + Products::kStep - 1) / Products::kStep;
      const int steps = left < Products::kSteps ? left : Products::kSteps;  // that have channels
      int mine = Products::share();  // the next step of this thread's share, from the tap's first
      for (int dy = -(taps_down / 2); dy <= taps_down / 2; ++dy)
        for (int dx = -(taps_across / 2); dx <= taps_across / 2; ++dx, weights += kPieceElements) {
          if (mine >= steps) {
            mine -= steps;
            continue;
          }
          const T* rows[kDown];
#pragma unroll
          for (int i = 0; i < kDown; ++i) {
            const int at = Products::row(i) + dy * width + dx;
            rows[i] = place[i].has(dy, dx, height, width) ? pixels + at * Config::kStrideA : zeros_;
          }
#pragma unroll
          for (int i = 0; i < kTurns; ++i)
            if (mine < steps) {
              products.add_step(rows, weights, mine);
              mine += Config::kShares;
            }
          mine -= steps;
        }
    };
    const int chunks = zeros ? 0 : padded(channels, kDepth<T>) / kDepth<T>;
    add_pieces<kRingStages>(chunks, load, add, meanwhile);
    products.add_last();
  }

  // Starts to copy kDepth channels of `count` rows, of those that there are.
  CONVGRU_DEVICE void load_rows(
      const Source<T>& source, int64_t first_row, int count, int chunk, T* to) const {
    constexpr int kVectors = kDepth<T> / kVector<T>;
    const bool aligned = is_aligned(source);
    for (int i = threadIdx.x; i < count * kVectors; i += Config::kThreads) {
      const int offset = i % kVectors * kVector<T>;
      const int64_t row = first_row + i / kVectors;
      const int channel = chunk * kDepth<T> + offset, left = channels_left<T>(source.channels, channel);
      if (row >= 0 && row < rows_)
        load_channels(
            source.data + row * source.pixel_stride + (left > 0 ? channel : 0), left, aligned,
            to + i / kVectors * Config::kStrideA + offset);
    }
  }

  Place* places_;
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
