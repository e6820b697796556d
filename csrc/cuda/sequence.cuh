// A whole sequence in one kernel, for images of so few pixels that starting a kernel for every convolution
// would take longer than the convolutions (persistent RNNs, Diamos et al. 2016, carried over to
// convolutions).
//
// The convolutions of a step are phases: a block has in each some columns, and some of the tiles of rows, the
// same in every step. It copies the weights of its columns to shared memory once; in a step it reads only
// pixels: its rows and those around them that the taps reach, which all taps then take from there. After
// every phase all blocks wait for each other.
#pragma once
#include <new>

#include "window.cuh"

namespace convgru::cuda {

// With more tiles of rows for a block there are pixels enough for a kernel for each convolution.
constexpr int kMostTilesOfBlock = 4;

// The depth of a convolution without its taps: channels, source after source, each padded to whole steps.
struct FlatDepth {
  int first, all;  // of the first source; of both
};
template <class Config, class T>
CONVGRU_HOST_DEVICE FlatDepth flat_depth(const Convolution<T>& conv) {
  constexpr int kStep = Config::Products::kStep;
  const int first = padded(conv.sources[0].channels, kStep);
  return {first, first + (conv.source_count > 1 ? padded(conv.sources[1].channels, kStep) : 0)};
}

// How the depth goes through shared memory: kPartDepth channels at a time through a ring of kStages windows,
// or all at once, 0, if there is room.
template <int kRingStages, int kDepthOfPart>
struct RingShape {
  static constexpr int kStages = kRingStages, kPartDepth = kDepthOfPart;
  static_assert((kStages == 1) == (kPartDepth == 0));

  CONVGRU_HOST_DEVICE static int part_depth(int depth) {
    return kPartDepth == 0 || kPartDepth > depth ? depth : kPartDepth;
  }
  // Elements between the rows of a window, so that eight of them fall on different banks.
  template <class T>
  CONVGRU_HOST_DEVICE static int stride(int depth) {
    constexpr int kUnit = 2 * kCopyBytes / static_cast<int>(sizeof(T));
    return padded(part_depth(depth), kUnit) + kUnit / 2;
  }
};

// Copies windows of a tile.
template <class T, class Config>
class PartLoader {
 public:
  // Their rows are so many elements apart.
  CONVGRU_DEVICE PartLoader(const Convolution<T>& conv, const FlatDepth& depth, int64_t first_row, int stride)
      : conv_(conv), depth_(depth), pixels_(conv, first_row), stride_(stride) {}

  // Starts to copy so many channels from `channel` of the depth on.
  CONVGRU_DEVICE void load(int channel, int count, T* window) const {
    // Threads that share a row, a power of two.
    int lanes = Config::kThreads / Config::kTileRows;
    while (lanes < 32 && lanes * kVector<T> < count) lanes *= 2;
    const int row = threadIdx.x / lanes;
    for (int i = threadIdx.x % lanes * kVector<T>; i < count; i += lanes * kVector<T>) {
      const bool is_first = channel + i < depth_.first;
      const Source<T>& source = conv_.sources[is_first ? 0 : 1];
      const int of_source = channel + i - (is_first ? 0 : depth_.first);
      pixels_.load(
          source.data, pixels_.offset(source, of_source) + row * source.pixel_stride, source.pixel_stride,
          channels_left<T>(source.channels, of_source), is_aligned(source), row, Config::kThreads / lanes,
          window + row * stride_ + i, stride_);
    }
  }

 private:
  const Convolution<T>& conv_;
  FlatDepth depth_;
  WindowPixels<Config> pixels_;
  int stride_;
};

// The tiles of one phase that belong to a block, and the weights for them.
template <class T, class Config, class Ring>
class BlockTiles {
 public:
  // Elements of shared memory: for the weights of a convolution,
  CONVGRU_HOST_DEVICE static int weight_elements(const Convolution<T>& conv) {
    return conv.kernel_h * conv.kernel_w * flat_depth<Config>(conv).all * Config::kStrideB;
  }
  // for the rows that its taps find,
  CONVGRU_HOST_DEVICE static int tap_elements(const Convolution<T>& conv) {
    return Taps<T, Config>::elements(conv, kMostTilesOfBlock);
  }
  // and, the same for all phases, for the windows on their way or the sums.
  CONVGRU_HOST_DEVICE static int ring_elements(const Convolution<T>& conv) {
    const int stride = Ring::template stride<T>(flat_depth<Config>(conv).all);
    const int windows = Ring::kStages * WindowShape<Config>(conv).elements(stride);
    constexpr int kSums = Config::kSumsBytes / sizeof(T);
    return windows > kSums ? windows : kSums;
  }

  // Of the blocks of the phase, `across` by `down`, this is number `block`; those beyond have nothing to do.
  // Starts to copy the weights: the first wait for pixels waits for them too. Before a barrier.
  CONVGRU_DEVICE BlockTiles(
      const Convolution<T>& conv, int across, int block, int down, T* taps, T* ring, T* weights)
      : taps_(taps),
        ring_(ring),
        weights_(weights),
        first_column_(block % across * Config::kTileColumns),
        first_row_(int64_t{block / across} * Config::kTileRows),
        rows_(block < across * down ? conv.batch * conv.height * conv.width : 0),
        row_step_(int64_t{down} * Config::kTileRows) {
    if (rows_ > 0) {
      load_weights(conv);
      taps_.find(conv, first_row_, row_step_, kMostTilesOfBlock);
    }
    copy_async_commit();
  }

  template <class Epilogue>
  CONVGRU_DEVICE void run(const Phase<T, Epilogue>& phase) const {
    const Convolution<T>& conv = phase.conv;
    const FlatDepth depth = flat_depth<Config>(conv);
    const int stride = Ring::template stride<T>(depth.all);
    int first_tap = 0;
    for (int64_t row = first_row_; row < rows_; row += row_step_) {
      Products products;
      TileEpilogue<T, Config, Epilogue> epilogue(conv, phase.epilogue, row, first_column_);
      const PartLoader<T, Config> loader(conv, depth, row, stride);
      const auto meanwhile = [&] {
        epilogue.fetch_early();
        WindowShape<Config>(conv).write_zeros(ring_, Ring::kStages, stride);
      };
      if (phase.zeros)
        epilogue.fetch_early();
      else
        add_products(products, conv, depth, stride, loader, first_tap, meanwhile);
      epilogue.finish(products, ring_);
      if (row + row_step_ < rows_) __syncthreads();  // the ring is free for the next tile
      first_tap += conv.kernel_h * conv.kernel_w;
    }
  }

 private:
  using Products = typename Config::Products;

  // Of the packed ones, [tap][channel of the flat depth][column of the tile].
  CONVGRU_DEVICE void load_weights(const Convolution<T>& conv) const {
    constexpr int kAcross = Config::kTileColumns / kVector<T>;
    const FlatDepth depth = flat_depth<Config>(conv);
    const int taps = conv.kernel_h * conv.kernel_w, first_pieces = conv.pieces(0);
    const int count = conv.pieces_of_columns(first_column_) * (kDepth<T> * kAcross);
    for (int i = threadIdx.x; i < count; i += Config::kThreads) {
      const int row = i / kAcross, column = i % kAcross * kVector<T>;
      const int piece = row / kDepth<T>;
      const bool is_first = piece < first_pieces;
      const int of_source = is_first ? piece : piece - first_pieces;
      const int chunk = of_source / taps, tap = of_source % taps;
      const int channel = chunk * kDepth<T> + row % kDepth<T> + (is_first ? 0 : depth.first);
      if (channel < (is_first ? depth.first : depth.all))
        copy_async<kCopyBytes>(
            weights_ + (tap * depth.all + channel) * Config::kStrideB + column,
            conv.packed + int64_t{row} * conv.columns + first_column_ + column);
    }
  }

  template <class Meanwhile>
  CONVGRU_DEVICE void add_products(
      Products& products, const Convolution<T>& conv, const FlatDepth& depth, int stride,
      const PartLoader<T, Config>& loader, int first_tap, const Meanwhile& meanwhile) const {
    const int seen = first_column_ < conv.narrow_from ? depth.all : depth.first;
    const int part_depth = Ring::part_depth(depth.all);
    const int window = WindowShape<Config>(conv).elements(stride);
    const auto depth_of = [&](int part) {
      const int left = seen - part * part_depth;
      return left < part_depth ? left : part_depth;
    };
    const auto load = [&](int part, int stage) {
      loader.load(part * part_depth, depth_of(part), ring_ + stage * window);
    };
    const auto add = [&](int part, int stage) {
      add_part(
          products, conv, depth.all, part * part_depth, depth_of(part), ring_ + stage * window, stride,
          first_tap);
    };
    if constexpr (Ring::kStages == 1) {
      load(0, 0);
      copy_async_commit();
      meanwhile();
      copy_async_wait<0>();
      __syncthreads();
      add(0, 0);
      __syncthreads();  // the ring is free for the sums
    } else {
      add_pieces<Ring::kStages>((seen + part_depth - 1) / part_depth, load, add, meanwhile);
    }
    products.add_last();
  }

  // The products of so many channels, of this thread's share of the steps of all taps: neighbours, tap by
  // tap.
  CONVGRU_DEVICE void add_part(
      Products& products, const Convolution<T>& conv, int depth, int channel, int count, const T* window,
      int stride, int first_tap) const {
    const int steps_of_tap = count / Products::kStep, steps = conv.kernel_h * conv.kernel_w * steps_of_tap;
    int i = steps * Products::share() / Config::kShares;
    const int end = steps * (Products::share() + 1) / Config::kShares;
    int tap = i / steps_of_tap, step = i % steps_of_tap;
    window += Products::left_offset();
    const T* const first_weights = weights_ + channel * Config::kStrideB + Products::right_offset();
    while (i < end) {
      const T* rows[Products::kDown];
      taps_.at(first_tap + tap, window + step * Products::kStep, stride, rows);
      const T* weights = first_weights + (tap * depth + step * Products::kStep) * Config::kStrideB;
      const int left = steps_of_tap - step, end_of_tap = i + left < end ? i + left : end;
      for (; i < end_of_tap; ++i) {
        products.add_step(rows, weights);
#pragma unroll
        for (int row = 0; row < Products::kDown; ++row) rows[row] += Products::kStep;
        weights += Products::kStep * Config::kStrideB;
      }
      ++tap;
      step = 0;
    }
  }

  Taps<T, Config> taps_;
  T *ring_, *weights_;
  int first_column_;
  int64_t first_row_, rows_, row_step_;
};

// Room in front of a block's tiles for what each phase is, which all its threads read.
constexpr size_t kPhaseBytes = 512;

template <int kPhase, class Sequence>
CONVGRU_DEVICE auto* phase_in(unsigned char* shared, const Sequence& sequence) {
  using Type = decltype(sequence.template phase<kPhase>(0));
  static_assert(sizeof(Type) <= kPhaseBytes && alignof(Type) <= kCopyBytes);
  return reinterpret_cast<Type*>(shared + kPhase * kPhaseBytes);
}

// Where the shared memory of a block has what, in elements after what the phases are.
template <class T, class FirstConfig, class LastConfig, class Ring, class Sequence>
struct SequenceRoom {
  using First = BlockTiles<T, FirstConfig, Ring>;
  using Last = BlockTiles<T, LastConfig, Ring>;
  static constexpr int kPhases = Sequence::kPhases;
  int first_taps, last_taps, ring, first_weights, last_weights, end;

  CONVGRU_HOST_DEVICE explicit SequenceRoom(const Sequence& sequence) {
    const Convolution<T>&first = sequence.convolutions[0], &last = sequence.convolutions[kPhases - 1];
    const int for_first = First::ring_elements(first), for_last = Last::ring_elements(last);
    first_taps = 0;
    last_taps = First::tap_elements(first);
    ring = kPhases * last_taps;
    first_weights = ring + (for_first > for_last ? for_first : for_last);
    last_weights = first_weights + First::weight_elements(first);
    end = last_weights + (kPhases == 2 ? Last::weight_elements(last) : 0);
  }
  size_t bytes() const { return kPhases * kPhaseBytes + size_t{sizeof(T)} * end; }
};

template <class T, class FirstConfig, class LastConfig, class Ring, class Sequence>
__global__ void __launch_bounds__(FirstConfig::kThreads, 1)
    sequence_kernel(const __grid_constant__ Sequence sequence, int across_first, int across_last, int down) {
  constexpr int kPhases = Sequence::kPhases, kLast = kPhases - 1, kThreads = FirstConfig::kThreads;
  static_assert(LastConfig::kThreads == kThreads);
  const SequenceRoom<T, FirstConfig, LastConfig, Ring, Sequence> room(sequence);
  unsigned char* const shared = dynamic_shared();
  T* const elements = reinterpret_cast<T*>(shared + kPhases * kPhaseBytes);
  auto* const first = phase_in<0>(shared, sequence);
  auto* const last = phase_in<kLast>(shared, sequence);
  // What this block does in the i-th step; threads of two warps write it down, that have nothing else to do.
  const auto describe = [&](int64_t i) {
    if (threadIdx.x == kThreads - 1) new (first) auto(sequence.template phase<0>(i));
    if constexpr (kLast == 1)
      if (threadIdx.x == kThreads - 33 && i < sequence.steps.count)
        new (last) auto(sequence.template phase<kLast>(i));
  };
  const BlockTiles<T, FirstConfig, Ring> first_tiles(
      sequence.convolutions[0], across_first, blockIdx.x, down, elements + room.first_taps,
      elements + room.ring, elements + room.first_weights);
  const auto last_tiles = [&] {
    if constexpr (kLast == 1)
      return BlockTiles<T, LastConfig, Ring>(
          sequence.convolutions[kLast], across_last, blockIdx.x, down, elements + room.last_taps,
          elements + room.ring, elements + room.last_weights);
    else
      return 0;
  }();
  describe(0);
  __syncthreads();
  unsigned round = 0;
  const int64_t count = sequence.steps.count, end = count + sequence.steps.ends;
  for (int64_t i = 0; i < end; ++i) {
    first_tiles.run(*first);
    if constexpr (kLast == 1) {
      if (i == count) break;
      sync_grid(sequence.meet, ++round, [] {});
      last_tiles.run(*last);
    }
    if (i + 1 < end) sync_grid(sequence.meet, ++round, [&] { describe(i + 1); });
  }
}

}  // namespace convgru::cuda
