// Convolutions by the matrix units of Hopper: warpgroups, four warps that multiply together while they go on
// (wgmma). They read the weights where they are in shared memory, and pixels from registers, so that the rows
// of a tile may lie anywhere in its window.
#pragma once
#include "window.cuh"

namespace convgru::cuda {

// 16-bit elements. Two warpgroups have half of the rows of a tile each.
template <class T, int kColumns>
struct WarpgroupConfig : TileConfig<T, 128, kColumns, 0, 4, 256> {
  using Tile = TileConfig<T, 128, kColumns, 0, 4, 256>;
  static constexpr int kResidentBlocks = 2;
  static constexpr bool kFetchesEarly = false;  // the sums take the registers
  // So that what half a warp stores together is on different banks, and what a quarter reads, by turns.
  static constexpr int kSumsStride = kColumns + 8, kSumsOfShare = Tile::kTileRows * kSumsStride;
  static constexpr size_t kSumsBytes = size_t{kSumsOfShare} * sizeof(float);
  static constexpr bool kReadsByTurns = true;
  static_assert(sizeof(T) == 2);

  class Products {
   public:
    static constexpr int kStep = 16, kSteps = kDepth<T> / kStep, kDown = 1;

    CONVGRU_DEVICE static int share() { return 0; }
    CONVGRU_DEVICE static int row(int) { return first_row() + lane() % 16; }
    CONVGRU_DEVICE static int left_offset() { return lane() / 16 * (kStep / 2); }

    // From 8 columns to the next, and from 8 channels to the next.
    static constexpr int kColumnsBytes = 8 * kGroup * static_cast<int>(sizeof(T)),
                         kGroupBytes = kColumns / 8 * kColumnsBytes;

    // Begins the products of a piece of the depth, of so many steps: after wait(). weights: their descriptor.
    template <int kCount = kSteps>
    CONVGRU_DEVICE void add(const T* const (&rows)[kDown], uint64_t weights) {
#pragma unroll
      for (int step = 0; step < kCount; ++step) load_matrices<false>(left_[step], rows[0] + step * kStep);
      warpgroup_fence();
#pragma unroll
      for (int step = 0; step < kCount; ++step)
        warpgroup_multiply_add<kHalfOf<T>, kColumns>(
            sum_, left_[step], moved_descriptor(weights, step * (kStep / kGroup) * kGroupBytes));
      warpgroup_commit();
    }
    CONVGRU_DEVICE void wait() { warpgroup_wait(sum_); }

    CONVGRU_DEVICE void store(float* sums, int stride) const {
      float* const to = sums + (first_row() + lane() / 4) * stride + lane() % 4 * 2;
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2)
        *reinterpret_cast<Words<8>*>(to + i / 2 % 2 * 8 * stride + i / 4 * 8) =
            Words<8>{float_to_bits(sum_[i]), float_to_bits(sum_[i + 1])};
    }

   private:
    CONVGRU_DEVICE static int lane() { return threadIdx.x % 32; }
    CONVGRU_DEVICE static int first_row() { return threadIdx.x / 32 * 16; }

    float sum_[kColumns / 2] = {};
    uint32_t left_[kSteps][4];
  };
};

// A ring of weights, one piece of the depth a stage, which one thread copies at once: they are packed as they
// lie there.
template <class T, class Config>
class WeightRing {
  using Products = typename Config::Products;

 public:
  static constexpr int kPieceElements = kDepth<T> * Config::kTileColumns,
                       kElements = Config::kStages * kPieceElements;
  static constexpr int kBarrierBytes = 128;  // of the barriers, with what comes after them aligned
  static_assert(Config::kStages * sizeof(uint64_t) <= kBarrierBytes);

  // Starts to copy the first ones. Before a barrier of the block.
  CONVGRU_DEVICE WeightRing(
      const Convolution<T>& conv, int first_column, int pieces, uint64_t* barriers, T* stages)
      : from_(conv.packed + int64_t{first_column} * kDepth<T>),
        step_(int64_t{conv.columns} * kDepth<T>),
        left_(pieces),
        barriers_(barriers),
        stages_(stages),
        first_(descriptor(stages, Products::kColumnsBytes, Products::kGroupBytes)) {
    if (threadIdx.x != 0) return;
    for (int stage = 0; stage < Config::kStages; ++stage) barrier_init(barriers_ + stage, 1);
    async_proxy_fence();
    for (int stage = 0; stage < Config::kStages - 1; ++stage) load_if_any(stage);
  }

  // Starts to copy those of kStages - 1 pieces later, when nobody reads those before any more.
  CONVGRU_DEVICE void load_next() {
    if (threadIdx.x == 0) load_if_any(stage_ == 0 ? Config::kStages - 1 : stage_ - 1);
  }

  // The descriptor of those of this piece, when they are there.
  CONVGRU_DEVICE uint64_t current() const {
    barrier_wait(barriers_ + stage_, parity_);
    return moved_descriptor(first_, stage_ * kPieceElements * static_cast<int>(sizeof(T)));
  }

  CONVGRU_DEVICE void advance() {
    if (++stage_ < Config::kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

 private:
  CONVGRU_DEVICE void load_if_any(int stage) {
    constexpr unsigned kBytes = kPieceElements * sizeof(T);
    if (left_ == 0) return;
    --left_;
    barrier_expect(barriers_ + stage, kBytes);
    copy_bulk(stages_ + stage * kPieceElements, from_, kBytes, barriers_ + stage);
    from_ += step_;
  }

  // Of what is copied next.
  const T* from_;
  int64_t step_;
  int left_;
  uint64_t* barriers_;
  T* stages_;
  uint64_t first_;  // descriptor
  // Of this piece.
  int stage_ = 0;
  unsigned parity_ = 0;
};

// The shared memory of convolve_warpgroups_kernel: barriers; rows of taps, two windows, a ring of weights; or
// then instead of these the sums.
template <class T, class Config>
struct WarpgroupRoom {
  static size_t bytes(const Convolution<T>& conv) {
    return WeightRing<T, Config>::kBarrierBytes + WindowRoom<T, Config>::bytes(conv);
  }
};

template <class T, class Config, class Epilogue>
CONVGRU_DEVICE void convolve_warpgroups(const Convolution<T>& conv, const Epilogue& epilogue) {
  using Products = typename Config::Products;
  using Ring = WeightRing<T, Config>;
  const int64_t first_row = int64_t{blockIdx.x} * Config::kTileRows;
  const int first_column = blockIdx.y * Config::kTileColumns, taps = conv.kernel_h * conv.kernel_w;
  const int pieces = conv.pieces_of_columns(first_column);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(dynamic_shared());
  T* const shared = reinterpret_cast<T*>(dynamic_shared() + Ring::kBarrierBytes);
  // The ring comes first, so that where it is needs no register.
  Ring ring(conv, first_column, pieces, barriers, shared);
  const Taps<T, Config> tap_rows(shared + Ring::kElements);
  const WindowShape<Config> shape(conv);
  T* window = shared + Ring::kElements + Taps<T, Config>::elements(conv, 1);
  T* other = window + shape.elements(Config::kStrideA);
  WindowLoader<T, Config> loader(conv, first_row);
  const auto load_window = [&](T* to) {
    loader.load_next(to);
    copy_async_commit();
  };
  load_window(window);
  tap_rows.find(conv, first_row, 0, 1);
  shape.write_zeros(window, 2, Config::kStrideA);
  __syncthreads();

  Products products;
  const int left_offset = in_register(Products::left_offset());
  const T* rows[Products::kDown];
  const auto has_all_steps = [&](int chunk) {
    return steps_of<Products>(conv.channels_from(chunk)) == Products::kSteps;
  };
  int tap = 0, chunk = 0;
  bool all = has_all_steps(0);
  copy_async_wait<0>();
  // One loop: of two nested ones the compiler does not see that products go on from one to the next.
  for (int piece = 0; piece < pieces; ++piece) {
    tap_rows.at(tap, window + left_offset, Config::kStrideA, rows);
    products.wait();
    __syncthreads();  // the window is there, and nobody reads the weights or the window before any more
    ring.load_next();
    const uint64_t weights = ring.current();
    if (all)
      products.add(rows, weights);
    else
      products.template add<1>(rows, weights);
    ring.advance();
    if (tap == 0 && piece + taps < pieces) load_window(other);
    if (++tap == taps) {
      tap = 0;
      all = has_all_steps(++chunk);
      T* const last = window;
      window = other;
      other = last;
      copy_async_wait<0>();
    }
  }
  products.wait();
  __syncthreads();
  TileEpilogue<T, Config, Epilogue>(conv, epilogue, first_row, first_column).finish(products, shared);
}

template <class T, class Config, class Epilogue>
__global__ void __launch_bounds__(Config::kThreads, Config::kResidentBlocks) convolve_warpgroups_kernel(
    const __grid_constant__ Convolution<T> conv, const __grid_constant__ Epilogue epilogue) {
  if constexpr (kHasWarpgroupProducts)
    convolve_warpgroups<T, Config, Epilogue>(conv, epilogue);
  else
    trap();  // never started there (uses_warpgroups)
}

}  // namespace convgru::cuda
