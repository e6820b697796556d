// Pixels that are copied to shared memory once for all taps of a kernel: the window of a tile has the pixels
// of its rows and those around them that the taps reach.
#pragma once
#include "convolution.cuh"

namespace convgru::cuda {

// Rows of a window: for each row of the kernel those that its taps reach, one after the other, or overlapping
// where an image is so narrow that some would come twice.
template <class Config>
struct WindowShape {
  int step, rows;  // from one row of the kernel to the next; in all

  template <class T>
  CONVGRU_HOST_DEVICE explicit WindowShape(const Convolution<T>& conv) {
    const int reached = Config::kTileRows + conv.kernel_w - 1;
    step = conv.width < reached ? conv.width : reached;
    rows = (conv.kernel_h - 1) * step + reached;
  }
  CONVGRU_HOST_DEVICE int elements() const { return rows * Config::kStrideA; }
};

// What one thread copies of the windows of a tile, of kDepth channels after kDepth channels, source by
// source.
template <class T, class Config>
class WindowLoader {
 public:
  CONVGRU_DEVICE WindowLoader(const Convolution<T>& conv, int64_t first_row)
      : conv_(conv),
        shape_(conv),
        first_pixel_(first_row - conv.kernel_h / 2 * conv.width - conv.kernel_w / 2) {
    const int64_t left = conv.batch * conv.height * conv.width - first_pixel_;
    begin_ = first_pixel_ < 0 ? static_cast<int>(-first_pixel_) : 0;
    end_ = left < (1 << 30) ? static_cast<int>(left) : 1 << 30;
    begin_source(0);
  }

  // Starts to copy the next one.
  CONVGRU_DEVICE void load_next(T* window) {
    const int row = threadIdx.x / kVectors;
    const int left = channels_left<T>(channels_, channel_);
    // Between the rows of the kernel pixels are left out that no tap reaches.
    const int between = conv_.width - shape_.step;
    int64_t from = from_;
    T* to = window + row * Config::kStrideA + first_channel();
    for (int i = row, within = i, pixel = i; i < shape_.rows; i += kAtOnce) {
      if (between > 0 && within >= shape_.step) {
        within -= shape_.step;
        pixel += between;
        from += between * pixel_stride_;
      }
      if (pixel >= begin_ && pixel < end_) load_channels(data_ + (left > 0 ? from : 0), left, aligned_, to);
      within += kAtOnce;
      pixel += kAtOnce;
      from += kAtOnce * pixel_stride_;
      to += kAtOnce * Config::kStrideA;
    }
    from_ += kDepth<T>;
    channel_ += kDepth<T>;
    if (channel_ - first_channel() >= channels_ && source_ + 1 < conv_.source_count)
      begin_source(source_ + 1);
  }

 private:
  static constexpr int kVectors = kDepth<T> / kVector<T>, kAtOnce = Config::kThreads / kVectors;
  static_assert(kAtOnce <= Config::kTileRows);

  CONVGRU_DEVICE static int first_channel() { return threadIdx.x % kVectors * kVector<T>; }

  CONVGRU_DEVICE void begin_source(int index) {
    const Source<T>& source = conv_.sources[index];
    source_ = index;
    aligned_ = is_aligned(source);
    channels_ = source.channels;
    pixel_stride_ = source.pixel_stride;
    channel_ = first_channel();
    data_ = source.data;
    from_ = (first_pixel_ + threadIdx.x / kVectors) * pixel_stride_ + channel_;
  }

  const Convolution<T>& conv_;
  WindowShape<Config> shape_;
  int64_t first_pixel_;  // of the window; from there to the pixels that there are
  int begin_, end_;
  // Of what is copied next.
  int source_, channels_, channel_;
  int64_t pixel_stride_, from_;
  const T* data_;
  bool aligned_;
};

// Taps that a kernel has at most, a bit of a mask each.
constexpr int kMostTaps = 64;

// Where the taps find the rows of kTiles tiles of a block: in the window, or a row of zeros where there is no
// pixel. In shared memory.
template <class T, class Config, int kTiles>
class Taps {
 public:
  static constexpr int kRows = kTiles * Config::kTileRows;
  static constexpr int kElements =
      (kRows * 8 + kMostTaps * 4) / static_cast<int>(sizeof(T)) + Config::kStrideA;

  CONVGRU_DEVICE explicit Taps(T* shared)
      : taps_of_rows_(reinterpret_cast<uint64_t*>(shared)),
        shifts_(reinterpret_cast<int*>(taps_of_rows_ + kRows)),
        zeros_(reinterpret_cast<T*>(shifts_ + kMostTaps)) {}

  // Before a barrier. Tiles are row_step rows apart.
  CONVGRU_DEVICE void find(const Convolution<T>& conv, int64_t first_row, int64_t row_step) const {
    for (int i = threadIdx.x; i < kRows; i += Config::kThreads)
      taps_of_rows_[i] =
          taps_of_row(conv, first_row + i / Config::kTileRows * row_step + i % Config::kTileRows);
    const WindowShape<Config> shape(conv);
    for (int tap = threadIdx.x; tap < conv.kernel_h * conv.kernel_w; tap += Config::kThreads)
      shifts_[tap] = (tap / conv.kernel_w * shape.step + tap % conv.kernel_w) * Config::kStrideA;
    for (int i = threadIdx.x; i < Config::kStrideA; i += Config::kThreads)
      zeros_[i] = narrow<T>(compute_t<T>(0));
  }

  // Those of the rows that this thread gives to Products.
  class Rows {
    using Products = typename Config::Products;

   public:
    CONVGRU_DEVICE explicit Rows(const Taps& taps) : taps_(taps) {}

    // After find() and a barrier.
    CONVGRU_DEVICE void read(int tile) {
#pragma unroll
      for (int i = 0; i < Products::kDown; ++i)
        taps_of_row_[i] = taps_.taps_of_rows_[tile * Config::kTileRows + Products::row(i)];
    }

    CONVGRU_DEVICE void at(int tap, const T* window, const T* (&rows)[Products::kDown]) const {
      const T* const shifted = window + taps_.shifts_[tap];
#pragma unroll
      for (int i = 0; i < Products::kDown; ++i)
        rows[i] = taps_of_row_[i] >> tap & 1 ? shifted + Products::row(i) * Config::kStrideA : taps_.zeros_;
    }

   private:
    const Taps& taps_;
    uint64_t taps_of_row_[Products::kDown];
  };

 private:
  // Bit i: there is a pixel under the i-th tap.
  CONVGRU_DEVICE static uint64_t taps_of_row(const Convolution<T>& conv, int64_t row) {
    const Place place = place_of(conv, row);
    uint64_t taps = 0, bit = 1;
    for (int dy = -(conv.kernel_h / 2); dy <= conv.kernel_h / 2; ++dy)
      for (int dx = -(conv.kernel_w / 2); dx <= conv.kernel_w / 2; ++dx, bit <<= 1)
        if (place.has(dy, dx, conv.height, conv.width)) taps |= bit;
    return taps;
  }

  uint64_t* taps_of_rows_;
  int* shifts_;
  T* zeros_;
};

// Steps of the depth with channels, of a piece that has so many.
template <class Products>
CONVGRU_DEVICE int steps_of(int channels) {
  static_assert(Products::kSteps <= 2);
  return channels > (Products::kSteps - 1) * Products::kStep ? Products::kSteps : 1;
}

// The shared memory of convolve_window_kernel: taps, two windows, a ring of weights; or then the sums.
template <class T, class Config>
struct WindowRoom {
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;

  CONVGRU_HOST_DEVICE static size_t bytes(const Convolution<T>& conv) {
    const size_t elements = Taps<T, Config, 1>::kElements + 2 * WindowShape<Config>(conv).elements() +
                            Config::kStages * kPieceElements;
    const size_t all = elements * sizeof(T);
    return all > Config::kSumsBytes ? all : Config::kSumsBytes;
  }
  // A window is copied kStages - 1 pieces before its first tap. By then the last tap of the window but one
  // before it has to be multiplied.
  static bool suits(const Convolution<T>& conv) {
    const int taps = conv.kernel_h * conv.kernel_w;
    return taps >= Config::kStages - 1 && taps <= kMostTaps;
  }
};

// As convolve_kernel, but that all taps read the same window of pixels, while the next is copied to another.
template <class T, class Config, class Epilogue>
__global__ void __launch_bounds__(Config::kThreads, Config::kResidentBlocks) convolve_window_kernel(
    const __grid_constant__ Convolution<T> conv, const __grid_constant__ Epilogue epilogue) {
  using Products = typename Config::Products;
  using BlockTaps = Taps<T, Config, 1>;
  constexpr int kPieceElements = WindowRoom<T, Config>::kPieceElements;
  const int64_t first_row = int64_t{blockIdx.x} * Config::kTileRows;
  const int first_column = blockIdx.y * Config::kTileColumns, taps = conv.kernel_h * conv.kernel_w;
  T* const shared = reinterpret_cast<T*>(dynamic_shared());
  const int window_elements = WindowShape<Config>(conv).elements();
  T* const windows = shared + BlockTaps::kElements;
  T* const weights = windows + 2 * window_elements;
  WindowLoader<T, Config> window_loader(conv, first_row);
  WeightLoader<T, Config> weight_loader(conv, first_column);
  const auto the_other = [&](auto* one) { return one == windows ? one + window_elements : windows; };
  T* window_to_load = windows;
  int tap_to_load = 0;
  const auto load = [&](int, int stage) {
    if (tap_to_load == 0) {
      window_loader.load_next(window_to_load);
      window_to_load = the_other(window_to_load);
    }
    weight_loader.load_next(weights + stage * kPieceElements);
    if (++tap_to_load == taps) tap_to_load = 0;
  };

  // Of the next piece: its tap, chunk of channels and window, the rows there, whether all of its steps have
  // channels. Found before the barrier in front of its products.
  const BlockTaps block_taps(shared);
  typename BlockTaps::Rows tap_rows(block_taps);
  int tap = 0, chunk = 0;
  const T* window = windows;
  const T* rows[Products::kDown];
  bool all = steps_of<Products>(conv.channels_from(0)) == Products::kSteps;
  Products products;
  const auto add = [&](int, int stage) {
    if (all)
      products.add(rows, weights + stage * kPieceElements);
    else
      products.template add<1>(rows, weights + stage * kPieceElements);
    if (++tap == taps) {
      tap = 0;
      window = the_other(window);
      all = steps_of<Products>(conv.channels_from(++chunk)) == Products::kSteps;
    }
    tap_rows.at(tap, window, rows);
  };

  TileEpilogue<T, Config, Epilogue> tile_epilogue(conv, epilogue, first_row, first_column);
  const auto meanwhile = [&] {
    block_taps.find(conv, first_row, 0);
    __syncthreads();
    tap_rows.read(0);
    tap_rows.at(tap, window, rows);
    tile_epilogue.fetch();
  };
  add_pieces<Config::kStages, /*kAddFirst=*/true>(conv.pieces_of_columns(first_column), load, add, meanwhile);
  tile_epilogue.finish(products, shared);
}

}  // namespace convgru::cuda
