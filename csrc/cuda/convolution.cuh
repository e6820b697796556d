// The kernels: "same" convolutions as matrix products, their weights packed, epilogues without a convolution.
//
// A block computes kTileRows x kTileColumns sums of a convolution, which are rows = pixels and columns =
// output channels. Nothing is concatenated or unfolded: the depth goes over the sources, of each over its
// channels, kDepth at a time, of these over the taps of the kernel. Here the pixels of the tile are loaded
// anew for every tap, shifted; window.cuh has the kernel that loads them once. Pieces of the depth go through
// a ring of stages in shared memory, copied while earlier ones are multiplied.
#pragma once
#include "gates.cuh"

namespace convgru::cuda {

// Whether kVector<T> channels of a source can be copied at once.
template <class T>
CONVGRU_DEVICE bool is_aligned(const Source<T>& source) {
  return reinterpret_cast<uintptr_t>(source.data) % kCopyBytes == 0 &&
         source.pixel_stride * sizeof(T) % kCopyBytes == 0;
}

// How many of the next kVector<T> channels from `channel` on there are.
template <class T>
CONVGRU_DEVICE int channels_left(int channels, int channel) {
  const int left = channels - channel;
  return left < 0 ? 0 : left > kVector<T> ? kVector<T> : left;
}

// Starts to copy `count` channels to shared memory, of kVector<T>, and zeros for the others. `from` can be
// read even if nothing is.
template <class T>
CONVGRU_DEVICE void load_channels(const T* from, int count, bool aligned, T* target) {
  if (aligned) {
    copy_async<kCopyBytes>(target, from, count * static_cast<int>(sizeof(T)));
  } else {
    T some[kVector<T>];  // all are under way before the first is there
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) some[k] = k < count ? from[k] : narrow<T>(compute_t<T>(0));
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) target[k] = some[k];
  }
}

// What one thread of a block loads of packed weights, for the columns of a tile: kDepth rows after kDepth
// rows.
template <class T, class Config>
class WeightLoader {
 public:
  CONVGRU_DEVICE WeightLoader(const Convolution<T>& conv, int first_column)
      : step_(in_register(int64_t{kDepth<T>} * conv.columns)),
        to_(in_register(row() * Config::kStrideB + column())) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      from_[i] = conv.packed + first_column + int64_t{row() + i * kDown} * conv.columns + column();
  }

  // Starts to copy the next ones.
  CONVGRU_DEVICE void load_next(T* to) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if ((Config::kThreads % kAcross == 0 || row() < kDown) &&
          (kDepth<T> % kDown == 0 || row() + i * kDown < kDepth<T>))
        copy_async<kCopyBytes>(to + to_ + i * kDown * Config::kStrideB, from_[i]);
      from_[i] += step_;
    }
  }

 private:
  // Neighbouring threads have the columns of a row, all that fit those of kDown rows.
  static constexpr int kAcross = Config::kTileColumns / kVector<T>, kDown = Config::kThreads / kAcross;
  static constexpr int kChunks = (kDepth<T> + kDown - 1) / kDown;

  CONVGRU_DEVICE static int row() { return threadIdx.x / kAcross; }
  CONVGRU_DEVICE static int column() { return threadIdx.x % kAcross * kVector<T>; }

  int64_t step_;
  int to_;
  const T* from_[kChunks];
};

// Where the pixel of a row is in its image; far outside of it if there is no such row.
struct Place {
  int y, x;

  // Whether there is a pixel so far from it.
  CONVGRU_DEVICE bool has(int dy, int dx, int height, int width) const {
    // Negative numbers are large ones.
    return (static_cast<unsigned>(y + dy) < static_cast<unsigned>(height)) &
           (static_cast<unsigned>(x + dx) < static_cast<unsigned>(width));
  }
};

template <class T>
CONVGRU_DEVICE Place place_of(const Convolution<T>& conv, int64_t row) {
  const int pixels = conv.height * conv.width;
  if (row >= conv.batch * pixels) return {-(1 << 24), 0};
  const int pixel = divided(row, pixels).remainder;
  return {pixel / conv.width, pixel % conv.width};
}

// What one thread of a block loads of the pieces of the depth: of the input and of the weights, piece by
// piece.
template <class T, class Config>
class Loader {
 public:
  CONVGRU_DEVICE Loader(const Convolution<T>& conv, int64_t first_row, int first_column)
      : conv_(conv),
        first_column_(first_column),
        offset_(threadIdx.x % kChunksOfRow * kVector<T>),
        weights_(conv, first_column) {
    for (int source = 0; source < conv.source_count; ++source) aligned_ &= is_aligned(conv.sources[source]);
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      row_[i] = first_row + (threadIdx.x + i * Config::kThreads) / kChunksOfRow;
      place_[i] = place_of(conv, row_[i]);
    }
    begin_source(0);
  }

  // The pieces that the block's columns see.
  CONVGRU_DEVICE int pieces() const { return conv_.pieces_of_columns(first_column_); }

  // Starts to copy the next piece, the input to a, the weights to b.
  CONVGRU_DEVICE void load_next(T* a, T* b) {
    const int count = channels_left<T>(channels_, channel_);
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
      const bool is_there = place_[i].has(dy_, dx_, conv_.height, conv_.width) && count > 0;
      const int row = threadIdx.x / kChunksOfRow + i * (Config::kThreads / kChunksOfRow);
      load_channels(
          is_there ? pixel_[i] + shift_ : pixel_[0], is_there ? count : 0, aligned_,
          a + row * Config::kStrideA + offset_);
    }
    weights_.load_next(b);
    advance();
  }

 private:
  static constexpr int kChunksOfRow = kDepth<T> / kVector<T>;
  static constexpr int kRowChunks = Config::kTileRows * kChunksOfRow / Config::kThreads;
  static_assert(kRowChunks * Config::kThreads == Config::kTileRows * kChunksOfRow);
  static_assert(Config::kThreads % kChunksOfRow == 0);

  // The first tap of the first channels of a source.
  CONVGRU_DEVICE void begin_source(int index) {
    const Source<T>& source = conv_.sources[index];
    source_ = index;
    channels_ = source.channels;
    pixel_stride_ = source.pixel_stride;
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i)
      pixel_[i] = source.data + (place_[i].y < 0 ? 0 : row_[i] * pixel_stride_);
    begin_channels(offset_);
  }
  CONVGRU_DEVICE void begin_channels(int channel) {
    channel_ = channel;
    dy_ = -(conv_.kernel_h / 2);
    dx_ = -(conv_.kernel_w / 2);
    shift_ = (int64_t{dy_} * conv_.width + dx_) * pixel_stride_ + channel;
  }

  CONVGRU_DEVICE void advance() {
    if (++dx_ <= conv_.kernel_w / 2) {
      shift_ += pixel_stride_;
    } else if (++dy_ <= conv_.kernel_h / 2) {
      dx_ = -(conv_.kernel_w / 2);
      shift_ += (conv_.width - conv_.kernel_w + 1) * pixel_stride_;
    } else if (channel_ - offset_ + kDepth<T> < channels_) {
      begin_channels(channel_ + kDepth<T>);
    } else if (source_ + 1 < conv_.source_count) {
      begin_source(source_ + 1);
    }
  }

  const Convolution<T>& conv_;
  int first_column_, offset_;
  WeightLoader<T, Config> weights_;
  bool aligned_ = true;
  int64_t row_[kRowChunks];
  Place place_[kRowChunks];
  // Of the next piece: its source, the pixels there of the rows, and from there to this thread's channels.
  int source_, channels_, channel_, dy_, dx_;
  int64_t pixel_stride_, shift_;
  const T* pixel_[kRowChunks];
};

// Adds the products of all pieces of the depth, one after the other. load(piece, stage) starts to copy what a
// piece needs to a stage of a ring, add(piece, stage) adds its products; meanwhile() is done while the first
// are under way. kAddFirst: a piece's products are begun before the next copies, rather than after.
template <int kStages, bool kAddFirst = false, class Load, class Add, class Meanwhile>
CONVGRU_DEVICE void add_pieces(int pieces, const Load& load, const Add& add, const Meanwhile& meanwhile) {
  const auto load_if_any = [&](int piece, int stage) {
    if (piece < pieces) load(piece, stage);
    copy_async_commit();
  };
  for (int piece = 0; piece < kStages - 1; ++piece) load_if_any(piece, piece);
  meanwhile();
  for (int piece = 0, stage = 0, last = kStages - 1; piece < pieces; ++piece) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the piece is there, and everybody is done with the stage that is filled next
    if constexpr (!kAddFirst) load_if_any(piece + kStages - 1, last);
    add(piece, stage);
    if constexpr (kAddFirst) load_if_any(piece + kStages - 1, last);
    last = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  __syncthreads();
}

// The epilogue of a tile: the sums go to it by way of `shared`, so that neighbouring threads have
// neighbouring channels, and a thread some of them together where in_vectors allows it.
template <class T, class Config, class Epilogue>
class TileEpilogue {
 public:
  CONVGRU_DEVICE TileEpilogue(
      const Convolution<T>& conv, const Epilogue& epilogue, int64_t first_row, int first_column)
      : epilogue_(epilogue),
        first_row_(first_row),
        first_channel_(first_column / kGates),
        channels_(kGates == 1 ? conv.out : conv.out / kGates),
        in_vectors_(in_vectors(epilogue)) {
    const int64_t left = conv.batch * conv.height * conv.width - first_row;
    rows_ = left < Config::kTileRows ? static_cast<int>(left) : Config::kTileRows;
  }

  // Starts to read what does not depend on the sums, if there are registers for it.
  CONVGRU_DEVICE void fetch_early() {
    if (Config::kFetchesEarly) fetch();
  }

  CONVGRU_DEVICE void finish(const typename Config::Products& products, void* shared) {
    A* const sums = static_cast<A*>(shared);
    products.store(sums + Config::Products::share() * Config::kSumsOfShare, Config::kSumsStride);
    if (!Config::kFetchesEarly) fetch();
    if (!in_vectors_) {
      __syncthreads();
      for (int j = 0; j < kVectors * kVector<T>; ++j) fetch_and_finish_one(j, sums);
      return;
    }
    Operands<Epilogue, kVector<T>> others[kAhead];
    const auto fetch_others = [&](int first) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (first + j < kVectors) fetch_one(first + j, others[j]);
    };
    fetch_others(kAhead);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kAhead; ++j) finish_one(j, sums, constants_, operands_[j]);
#pragma unroll
    for (int first = kAhead; first < kVectors; first += kAhead) {
      if (first > kAhead) fetch_others(first);
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (first + j < kVectors) finish_one(first + j, sums, constants_, others[j]);
    }
  }

 private:
  using A = compute_t<T>;
  static constexpr int kGates = kThreeGates<Epilogue> ? 3 : 1;
  static constexpr int kChannels = Config::kTileColumns / kGates;  // of a tile
  static constexpr int kAllVectors = Config::kTileRows * kChannels / kVector<T>;
  static constexpr int kVectors = (kAllVectors + Config::kThreads - 1) / Config::kThreads;  // of a thread
  static_assert(Config::kThreads % (kChannels / kVector<T>) == 0);  // so that they have the same channels
  // Of these so many are fetched at a time, in 40 registers: the first before there are sums, the next into
  // the registers of the sums.
  static constexpr int kBytes = sizeof(Operands<Epilogue, kVector<T>>);
  static constexpr int kAhead = 160 / kBytes < kVectors ? 160 / kBytes : kVectors;

  CONVGRU_DEVICE void fetch() {
    if (!in_vectors_) return;
    const int channel = first_channel_ + channel_of<kVector<T>>(0);
    if (channel < channels_) constants_.fetch(epilogue_, channel);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) fetch_one(j, operands_[j]);
  }

  // The j-th vector of N channels of this thread.
  template <int N>
  CONVGRU_DEVICE static int row_of(int j) {
    return (threadIdx.x + j * Config::kThreads) / (kChannels / N);
  }
  template <int N>
  CONVGRU_DEVICE static int channel_of(int j) {
    return (threadIdx.x + j * Config::kThreads) % (kChannels / N) * N;
  }

  template <int N>
  CONVGRU_DEVICE void fetch_one(int j, Operands<Epilogue, N>& operands) const {
    const int row = row_of<N>(j), channel = first_channel_ + channel_of<N>(j);
    if (row < rows_ && channel < channels_) operands.fetch(epilogue_, first_row_ + row, channel);
  }

  // A channel by itself.
  CONVGRU_DEVICE void fetch_and_finish_one(int j, const A* sums) const {
    Constants<Epilogue, 1> constants;
    Operands<Epilogue, 1> operands;
    const int channel = first_channel_ + channel_of<1>(j);
    if (channel < channels_) constants.fetch(epilogue_, channel);
    fetch_one(j, operands);
    finish_one(j, sums, constants, operands);
  }

  template <int N>
  CONVGRU_DEVICE static void read(A (&c)[N], const A* sums) {
    constexpr int kAtOnce = N % kVector<A> == 0 ? kVector<A> : 1;
    if constexpr (Config::kReadsByTurns && N == 2 * kAtOnce) {
      // Some threads read the second half first.
      const bool turned = threadIdx.x / 4 % 2 != 0;
      const Elements<A, kAtOnce> first(sums + (turned ? kAtOnce : 0)), last(sums + (turned ? 0 : kAtOnce));
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        c[k] = turned ? last[k] : first[k];
        c[k + kAtOnce] = turned ? first[k] : last[k];
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; i += kAtOnce)
#pragma unroll
        for (int share = 0; share < Config::kShares; ++share) {
          const Elements<A, kAtOnce> some(sums + share * Config::kSumsOfShare + i);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) c[i + k] = share == 0 ? some[k] : c[i + k] + some[k];
        }
    }
  }

  template <int N>
  CONVGRU_DEVICE void finish_one(
      int j, const A* sums, const Constants<Epilogue, N>& constants,
      const Operands<Epilogue, N>& operands) const {
    const int row = row_of<N>(j), channel = channel_of<N>(j);
    if (row >= rows_ || first_channel_ + channel >= channels_) return;
    const A* of_row = sums + row * Config::kSumsStride;
    A c[N];
    if constexpr (kGates == 3) {
      const A* of_group = of_row + channel / kCudnnGroup * (3 * kCudnnGroup) + channel % kCudnnGroup;
      A z[N], n[N];
      read(c, of_group);
      read(z, of_group + kCudnnGroup);
      read(n, of_group + 2 * kCudnnGroup);
      apply<N>(epilogue_, first_row_ + row, first_channel_ + channel, constants, operands, c, z, n);
    } else {
      read(c, of_row + channel);
      apply<N>(epilogue_, first_row_ + row, first_channel_ + channel, constants, operands, c);
    }
  }

  const Epilogue& epilogue_;
  int64_t first_row_;
  int first_channel_, channels_, rows_;
  bool in_vectors_;
  Constants<Epilogue, kVector<T>> constants_;
  Operands<Epilogue, kVector<T>> operands_[kAhead];
};

template <class T, class Config, class Epilogue>
__global__ void __launch_bounds__(Config::kThreads, Config::kResidentBlocks)
    convolve_kernel(const __grid_constant__ Convolution<T> conv, const __grid_constant__ Epilogue epilogue) {
  T* const stages = reinterpret_cast<T*>(dynamic_shared());
  const int64_t first_row = int64_t{blockIdx.x} * Config::kTileRows;
  const int first_column = blockIdx.y * Config::kTileColumns;
  Loader<T, Config> loader(conv, first_row, first_column);
  const auto left = [&](int stage) { return stages + stage * Config::kStageElements; };
  const auto right = [&](int stage) { return left(stage) + Config::kTileRows * Config::kStrideA; };
  const auto load = [&](int, int stage) { loader.load_next(left(stage), right(stage)); };
  using Products = typename Config::Products;
  Products products;
  const int left_offset = in_register(Products::row(0) * Config::kStrideA + Products::left_offset());
  const int right_offset = in_register(Products::right_offset());
  const auto add = [&](int, int stage) {
    const T* rows[Products::kDown];
#pragma unroll
    for (int i = 0; i < Products::kDown; ++i)
      rows[i] = left(stage) + left_offset + (Products::row(i) - Products::row(0)) * Config::kStrideA;
    products.add(rows, right(stage) + right_offset);
  };
  TileEpilogue<T, Config, Epilogue> tile_epilogue(conv, epilogue, first_row, first_column);
  add_pieces<Config::kStages>(loader.pieces(), load, add, [&] { tile_epilogue.fetch_early(); });
  tile_epilogue.finish(products, stages);
}

// What the configurations have in common: tiles of kRows x kColumns sums, kPad bytes between the rows of the
// weights in a stage. Eight rows of the input, kCopyBytes of each, fall on different banks. The sums of a
// tile are those of all kShares of its threads together.
template <class T, int kRows, int kColumns, int kPad, int kStageCount, int kThreadCount, int kShareCount = 1>
struct TileConfig {
  static constexpr int kTileRows = kRows, kTileColumns = kColumns, kStages = kStageCount,
                       kThreads = kThreadCount, kShares = kShareCount;
  static constexpr bool kFetchesEarly = true, kReadsByTurns = false;
  static constexpr int kStrideA = kDepth<T> + kCopyBytes / static_cast<int>(sizeof(T));
  static constexpr int kStrideB = kTileColumns + kPad / static_cast<int>(sizeof(T));
  static constexpr int kStageElements = kTileRows * kStrideA + kDepth<T> * kStrideB;
  static constexpr int kSumsStride = kTileColumns + 4, kSumsOfShare = kTileRows * kSumsStride;
  static constexpr size_t kSumsBytes = size_t{kShares} * kSumsOfShare * sizeof(compute_t<T>);

  static constexpr size_t shared_bytes() {
    const size_t stages = size_t{kStages} * kStageElements * sizeof(T);
    return stages > kSumsBytes ? stages : kSumsBytes;
  }
};

// Multiply-adds, for fp32 that must not be rounded and fp64: every thread has kDown x kAcross sums.
template <class T, int kColumns>
using PlainTile = TileConfig<T, 64, kColumns, kCopyBytes, 3, 256>;

template <class T, int kColumns>
struct PlainConfig : PlainTile<T, kColumns> {
  using Tile = PlainTile<T, kColumns>;
  static constexpr int kResidentBlocks = 1;  // of a multiprocessor, at least

  struct Products {
    using A = compute_t<T>;
    static constexpr int kSteps = 1, kStep = kDepth<T>;
    static constexpr int kThreadsAcross = 16, kThreadsDown = Tile::kThreads / kThreadsAcross;
    static constexpr int kDown = Tile::kTileRows / kThreadsDown, kAcross = kColumns / kThreadsAcross;
    A sum[kDown][kAcross] = {};

    CONVGRU_DEVICE static int share() { return 0; }

    // Interleaved, so that neighbouring threads read neighbouring elements.
    CONVGRU_DEVICE static int row(int i) { return threadIdx.x / kThreadsAcross + i * kThreadsDown; }
    CONVGRU_DEVICE static int column(int j) { return threadIdx.x % kThreadsAcross + j * kThreadsAcross; }

    // How far into each row, and into the weights, this thread's factors begin.
    CONVGRU_DEVICE static int left_offset() { return 0; }
    CONVGRU_DEVICE static int right_offset() { return 0; }

    // Adds the products of a piece of the depth. rows: where each row(i) of the input lies.
    CONVGRU_DEVICE void add(const T* const (&rows)[kDown], const T* b) {
#pragma unroll
      for (int k = 0; k < kDepth<T>; ++k) {
        A left[kDown], right[kAcross];
#pragma unroll
        for (int i = 0; i < kDown; ++i) left[i] = widen(rows[i][k]);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) right[j] = widen(b[k * Tile::kStrideB + column(j)]);
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
          for (int j = 0; j < kAcross; ++j) sum[i][j] = left[i] * right[j] + sum[i][j];
      }
    }

    CONVGRU_DEVICE void add_step(const T* const (&rows)[kDown], const T* b) { add(rows, b); }
    CONVGRU_DEVICE void add_last() {}

    CONVGRU_DEVICE void store(A* sums, int stride) const {
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j) sums[row(i) * stride + column(j)] = sum[i][j];
    }
  };
};

// How the warps of a block divide its tile on the matrix units: `shares` groups of them each have some steps
// of the depth, and sums of their own; within a group the warps, warps_across of them side by side, divide
// the tile. A multiprocessor has registers for so many blocks.
struct MatrixShape {
  int warps = 8, warps_across = 2, shares = 1, stages = 6, blocks = 2;
};

// Rows of the weights of 8 columns, 16 bytes or 32, are on different banks as they are.
template <class T, int kColumns>
constexpr int kMatrixPad = kColumns == 8    ? 0
                           : sizeof(T) == 2 ? 16
                                            : 32;

template <class T, int kColumns, MatrixShape kShape>
using MatrixTile =
    TileConfig<T, 64, kColumns, kMatrixPad<T, kColumns>, kShape.stages, 32 * kShape.warps, kShape.shares>;

// 16-bit elements, or floats of which the units read what TF32 has.
template <class T, int kColumns, MatrixShape kShape = MatrixShape{}>
struct MatrixConfig : MatrixTile<T, kColumns, kShape> {
  using Tile = MatrixTile<T, kColumns, kShape>;
  static constexpr int kResidentBlocks = kShape.blocks;

  class Products {
   public:
    static constexpr int kStep = 32 / static_cast<int>(sizeof(T)), kSteps = kDepth<T> / kStep;
    static constexpr int kWarpsOfShare = kShape.warps / kShape.shares;
    static constexpr int kWarpRows = Tile::kTileRows * kShape.warps_across / kWarpsOfShare,
                         kWarpColumns = kColumns / kShape.warps_across;
    static constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;  // products of 16 x 8 sums
    static_assert(kAcross == 1 || kAcross % 2 == 0);

    CONVGRU_DEVICE static int share() { return threadIdx.x / 32 / kWarpsOfShare; }

    // The i-th row whose address this thread gives.
    CONVGRU_DEVICE static int row(int i) { return first_row() + 16 * i + lane() % 16; }

    // How far into each row, and into the weights, this thread's factors begin.
    CONVGRU_DEVICE static int left_offset() { return lane() / 16 * (kStep / 2); }
    CONVGRU_DEVICE static int right_offset() {
      if constexpr (sizeof(T) == 2)
        return lane() % 16 * Tile::kStrideB + (kAcross == 1 ? 0 : lane() / 16 * 8) + first_column();
      else
        return lane() % 4 * Tile::kStrideB + lane() / 4 + first_column();
    }

    // Adds the products of a piece of the depth, of so many steps. rows: where each row(i) of the input lies;
    // these and b moved by the offsets.
    template <int kCount = kSteps>
    CONVGRU_DEVICE void add(const T* const (&rows)[kDown], const T* b) {
      // All factors first: the products then wait for them once.
      Factors factors[kCount];
#pragma unroll
      for (int step = 0; step < kCount; ++step) factors[step].load(rows, b, step);
#pragma unroll
      for (int step = 0; step < kCount; ++step) multiply_add(factors[step]);
    }

    // Adds those of one step, some time before the end of add_last(): while the factors of a step
    // come, those of the step before are multiplied.
    CONVGRU_DEVICE void add_step(const T* const (&rows)[kDown], const T* b) {
      Factors next;
      next.load(rows, b, 0);
      multiply_add(waiting_);
      waiting_ = next;
    }
    CONVGRU_DEVICE void add_last() { multiply_add(waiting_); }

    CONVGRU_DEVICE void store(float* sums, int stride) const {
      constexpr int kAtOnce = kShape.shares > 1 ? 2 : 1;  // others would spill registers
      float* const to = sums + (first_row() + lane() / 4) * stride + first_column() + lane() % 4 * 2;
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
#pragma unroll
          for (int e = 0; e < 4; e += kAtOnce) {
            float* const at = to + (16 * i + e / 2 * 8) * stride + 8 * j + e % 2;
            if constexpr (kAtOnce == 2)
              *reinterpret_cast<Words<8>*>(at) =
                  Words<8>{float_to_bits(sum_[i][j][e]), float_to_bits(sum_[i][j][e + 1])};
            else
              *at = sum_[i][j][e];
          }
    }

   private:
    CONVGRU_DEVICE static int lane() { return threadIdx.x % 32; }
    CONVGRU_DEVICE static int warp_of_share() { return threadIdx.x / 32 % kWarpsOfShare; }
    CONVGRU_DEVICE static int first_row() { return warp_of_share() / kShape.warps_across * kWarpRows; }
    CONVGRU_DEVICE static int first_column() { return warp_of_share() % kShape.warps_across * kWarpColumns; }

    // Those of a step of the depth, as the units want them.
    struct Factors {
      uint32_t left[kDown][4] = {}, right[kAcross][2] = {};

      CONVGRU_DEVICE void load(const T* const (&rows)[kDown], const T* b, int step) {
#pragma unroll
        for (int i = 0; i < kDown; ++i) load_matrices<false>(left[i], rows[i] + step * kStep);
        load_right(b + step * kStep * Tile::kStrideB);
      }

      CONVGRU_DEVICE void load_right(const T* b) {
        if constexpr (sizeof(T) == 2) {
          constexpr int kNext = kAcross == 1 ? 0 : 1;  // of a single one the matrices come twice
#pragma unroll
          for (int j = 0; j < kAcross; j += 2) {
            uint32_t two[4];
            load_matrices<true>(two, b + 8 * j);
            right[j][0] = two[0];
            right[j][1] = two[1];
            right[j + kNext][0] = two[2];
            right[j + kNext][1] = two[3];
          }
        } else {
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              right[j][half] = float_to_bits(b[4 * half * Tile::kStrideB + 8 * j]);
        }
      }
    };

    CONVGRU_DEVICE void multiply_add(const Factors& factors) {
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          if constexpr (sizeof(T) == 2)
            cuda::multiply_add<kHalfOf<T>>(sum_[i][j], factors.left[i], factors.right[j]);
          else
            multiply_add_tf32(sum_[i][j], factors.left[i], factors.right[j]);
        }
    }

    float sum_[kDown][kAcross][4] = {};
    Factors waiting_;
  };
};

// Calls f(i) for every i in [0, count) in some thread of the grid.
template <class F>
CONVGRU_DEVICE void for_all(int64_t count, const F& f) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) f(i);
}

constexpr int kElementThreads = 256, kElementBlocks = 4;  // of a multiprocessor

// The row and column of the i-th element of weights that are packed for warpgroups.
template <class T>
CONVGRU_DEVICE Divided place_for_warpgroups(int columns, bool cudnn, int64_t i) {
  const int of_tile = warpgroup_columns(columns, cudnn);
  const auto [vector, of_group] = divided(i, kGroup);
  const auto [group, column] = divided(vector, of_tile);
  const auto [tile, of_piece] = divided(group, kDepth<T> / kGroup);
  const auto [piece, across] = divided(tile, columns / of_tile);
  return {piece * kDepth<T> + of_piece * kGroup + of_group, across * of_tile + column};
}

template <class T>
CONVGRU_DEVICE void pack_part(const typename Packing<T>::Part& part) {
  const Weights<T>& weights = part.weights;
  const int taps = weights.kernel_h * weights.kernel_w;
  for_all(part.size, [&](int64_t i) {
    const auto [row, column] = weights.by_warpgroups ? place_for_warpgroups<T>(part.columns, weights.cudnn, i)
                                                     : divided(i, part.columns);
    const int64_t first_rows = int64_t{taps} * padded(weights.parts[0].channels, kDepth<T>);
    const bool is_first = row < first_rows;
    const WeightPart<T>& from = weights.parts[is_first ? 0 : 1];
    const auto [piece, within] = divided(is_first ? row : row - first_rows, kDepth<T>);
    const auto [chunk, tap] = divided(piece, taps);
    const int channel = static_cast<int>(chunk) * kDepth<T> + within;
    int out = column;
    bool exists = channel < from.channels;
    if (weights.cudnn) {
      const int K = weights.out / 3, group = column / (3 * kCudnnGroup);
      const int of_group = column % (3 * kCudnnGroup), hidden = group * kCudnnGroup + of_group % kCudnnGroup;
      out = of_group / kCudnnGroup * K + hidden;
      exists &= hidden < K;
    }
    exists &= out < from.outs;
    const int64_t at = out * from.out_stride + channel * from.in_stride +
                       tap / weights.kernel_w * from.row_stride + tap % weights.kernel_w * from.column_stride;
    part.packed[i] = exists ? from.data[at] : narrow<T>(compute_t<T>(0));
  });
}

template <class T>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks)
    pack_kernel(const __grid_constant__ Packing<T> packing) {
#pragma unroll
  for (int i = 0; i < Packing<T>::kMost; ++i)
    if (i < packing.count) pack_part<T>(packing.parts[i]);
  if (packing.meet != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *packing.meet = 0;
}

// An epilogue on sums that are in memory, or zeros, of N channels for each thread at once.
template <int N, class T, class Epilogue>
CONVGRU_DEVICE void apply_to_all(int64_t rows, int channels, const T* sums, const Epilogue& epilogue) {
  constexpr int kGates = kThreeGates<Epilogue> ? 3 : 1;
  const int across = channels / N;
  for_all(rows * across, [&](int64_t i) {
    const auto [row, vector] = divided(i, across);
    const int channel = vector * N;
    Constants<Epilogue, N> constants;
    Operands<Epilogue, N> operands;
    constants.fetch(epilogue, channel);
    operands.fetch(epilogue, row, channel);
    compute_t<T> c[kGates][N] = {};
    if (sums != nullptr) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate)
        add<N>(c[gate], Elements<T, N>(sums + (row * kGates + gate) * channels + channel));
    }
    if constexpr (kGates == 3)
      apply<N>(epilogue, row, channel, constants, operands, c[0], c[1], c[2]);
    else
      apply<N>(epilogue, row, channel, constants, operands, c[0]);
  });
}

// Fewer blocks: the operands of a vector take more than the 64 registers that four blocks leave a thread,
// those of "cudnn" more than the 80 of three.
template <class T, class Epilogue>
constexpr int kEpilogueBlocks = kElementBlocks - (sizeof(Operands<Epilogue, kVector<T>>) > 96 ? 2 : 1);
template <class T, class Epilogue>
__global__ void __launch_bounds__(kElementThreads, (kEpilogueBlocks<T, Epilogue>))
    elementwise_kernel(int64_t rows, int channels, const T* sums, const __grid_constant__ Epilogue epilogue) {
  if (in_vectors(epilogue) && in_vectors<T>(channels, sums))
    apply_to_all<kVector<T>>(rows, channels, sums, epilogue);
  else
    apply_to_all<1>(rows, channels, sums, epilogue);
}

// A tile of so many rows and columns is transposed in shared memory, where rows are kTransposeStride apart,
// so that neighbours in a column fall on different banks.
constexpr int kTransposeTile = 64;
template <class T>
constexpr int kTransposeStride = kTransposeTile + (sizeof(T) == 2 ? 2 : 1);

// kBytes are read and written at once.
template <int kBytes, class T>
CONVGRU_DEVICE void transpose_tile(
    const Transpose<T>& args, int64_t matrix, int64_t first_row, int64_t first_column, T* shared) {
  constexpr int N = kBytes / static_cast<int>(sizeof(T));
  constexpr int kAcross = kTransposeTile / N, kDown = kElementThreads / kAcross,
                kStride = kTransposeStride<T>;
  constexpr bool kInWords = kBytes >= 4;
  using Some = std::conditional_t<kInWords, Words<kInWords ? kBytes : 4>, T>;
  const int across = threadIdx.x % kAcross * N, down = threadIdx.x / kAcross;
  const T* from = args.from + matrix + first_row * args.columns + first_column + across;
  T* to = args.to + matrix + first_column * args.rows + first_row + across;
#pragma unroll
  for (int row = down; row < kTransposeTile; row += kDown) {
    if (first_row + row >= args.rows || first_column + across >= args.columns) continue;
    const Some some = *reinterpret_cast<const Some*>(from + row * args.columns);
    T* const place = shared + row * kStride + across;
    if constexpr (kInWords) {
#pragma unroll
      for (int word = 0; word < kBytes / 4; ++word)
        reinterpret_cast<Words<4>*>(place)[word].at[0] = some.at[word];
    } else {
      *place = some;
    }
  }
  __syncthreads();
#pragma unroll
  for (int column = down; column < kTransposeTile; column += kDown) {
    if (first_column + column >= args.columns || first_row + across >= args.rows) continue;
    const T* const place = shared + across * kStride + column;
    Some some;
    if constexpr (kInWords && sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < N; i += 2)
        some.at[i / 2] = uint32_t{place[i * kStride].bits} | uint32_t{place[(i + 1) * kStride].bits} << 16;
    } else if constexpr (kInWords) {
      constexpr int kWords = static_cast<int>(sizeof(T)) / 4;
#pragma unroll
      for (int word = 0; word < kBytes / 4; ++word)
        some.at[word] =
            reinterpret_cast<const Words<4>*>(place + word / kWords * kStride)[word % kWords].at[0];
    } else {
      some = *place;
    }
    *reinterpret_cast<Some*>(to + column * args.rows) = some;
  }
}

// Tiles of a matrix.
template <class T>
CONVGRU_HOST_DEVICE int64_t transpose_tiles_down(const Transpose<T>& args) {
  return (args.rows + kTransposeTile - 1) / kTransposeTile;
}
template <class T>
CONVGRU_HOST_DEVICE int64_t transpose_tiles_across(const Transpose<T>& args) {
  return (args.columns + kTransposeTile - 1) / kTransposeTile;
}

// A block has one tile of one of them.
template <class T>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks)
    transpose_kernel(const __grid_constant__ Transposes<T> transposes) {
  T* const shared = reinterpret_cast<T*>(dynamic_shared());
  int number = 0;
  int64_t block = blockIdx.x;
  const auto tiles = [&] {
    const Transpose<T>& args = transposes.each[number];
    return args.batch * transpose_tiles_down(args) * transpose_tiles_across(args);
  };
  for (int64_t count = tiles(); block >= count; count = tiles()) {
    block -= count;
    ++number;
  }
  const Transpose<T> args = transposes.each[number];
  const int tiles_down = static_cast<int>(transpose_tiles_down(args)),
            tiles_across = static_cast<int>(transpose_tiles_across(args));
  const auto [rest, across] = divided(block, tiles_across);
  const auto [index, down] = divided(rest, tiles_down);
  const int64_t matrix = index * args.rows * args.columns;
  const int64_t row = int64_t{down} * kTransposeTile, column = int64_t{across} * kTransposeTile;
  const uintptr_t all = reinterpret_cast<uintptr_t>(args.from) | reinterpret_cast<uintptr_t>(args.to) |
                        args.rows * sizeof(T) | args.columns * sizeof(T);
  if (all % 16 == 0)
    transpose_tile<16>(args, matrix, row, column, shared);
  else if (all % 8 == 0)
    transpose_tile<8>(args, matrix, row, column, shared);
  else if (sizeof(T) <= 4 && all % 4 == 0)
    transpose_tile<sizeof(T) <= 4 ? 4 : 8>(args, matrix, row, column, shared);
  else
    transpose_tile<sizeof(T)>(args, matrix, row, column, shared);
}

template <class T>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks)
    previous_states_kernel(const __grid_constant__ PreviousStates<T> args) {
  for_all(args.steps * args.samples * args.image, [&](int64_t i) {
    const int64_t t = i / args.image / args.samples, sample = i / args.image % args.samples;
    const int64_t last = args.lengths == nullptr ? args.steps - 1 : args.lengths[sample] - 1;
    const bool starts = t == (args.reverse ? last : 0);
    const int64_t before = args.reverse ? t + 1 : t - 1;
    if (!starts && before >= 0 && before < args.steps) {
      args.previous[i] = args.output[i + (before - t) * args.samples * args.image];
      return;
    }
    const bool zero = args.hx == nullptr;
    args.previous[i] = zero ? narrow<T>(compute_t<T>(0)) : args.hx[sample * args.image + i % args.image];
  });
}

template <class T>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks)
    valid_images_kernel(const __grid_constant__ ValidImages<T> args) {
  for_all(args.steps * args.samples * args.image, [&](int64_t i) {
    const int64_t t = i / args.image / args.samples, sample = i / args.image % args.samples;
    args.to[i] = t < args.lengths[sample] ? args.from[i] : narrow<T>(compute_t<T>(0));
  });
}

}  // namespace convgru::cuda
