// Pixels that are copied to shared memory once for all taps of a kernel: the window of a tile has the pixels
// of its rows and those around them that the taps reach.
#pragma once
#include "convolution.cuh"

namespace convgru::cuda {

// Rows of a window: for each row of the kernel those that its taps reach, one after the other, or overlapping
// where an image is so narrow that some would come twice. After them one of zeros.
template <class Config>
struct WindowShape {
  int step, rows;  // from one row of the kernel to the next; in all, without the last

  template <class T>
  CONVGRU_HOST_DEVICE explicit WindowShape(const Convolution<T>& conv) {
    const int reached = Config::kTileRows + conv.kernel_w - 1;
    step = conv.width < reached ? conv.width : reached;
    rows = (conv.kernel_h - 1) * step + reached;
  }
  // Of a window whose rows are so many elements apart.
  CONVGRU_HOST_DEVICE int elements(int stride) const { return (rows + 1) * stride; }

  // Of so many windows. Before a barrier.
  template <class T>
  CONVGRU_DEVICE void write_zeros(T* windows, int count, int stride) const {
    for (int window = 0; window < count; ++window)
      for (int i = threadIdx.x; i < stride; i += Config::kThreads)
        windows[window * elements(stride) + rows * stride + i] = narrow<T>(compute_t<T>(0));
  }
};

// The pixels of the window of a tile.
template <class Config>
class WindowPixels {
 public:
  template <class T>
  CONVGRU_DEVICE WindowPixels(const Convolution<T>& conv, int64_t first_row)
      : shape_(conv),
        between_(conv.width - shape_.step),
        first_(first_row - conv.kernel_h / 2 * conv.width - conv.kernel_w / 2) {
    const int64_t left = conv.batch * conv.height * conv.width - first_;
    begin_ = first_ < 0 ? static_cast<int>(-first_) : 0;
    end_ = left < (1 << 30) ? static_cast<int>(left) : 1 << 30;
  }

  // Some channels of the pixel in the first row.
  template <class T>
  CONVGRU_DEVICE int64_t offset(const Source<T>& source, int channel) const {
    return first_ * source.pixel_stride + channel;
  }

  // Starts to copy so many channels, of kVector<T>, of the pixels in `row` and those `apart` from one to the
  // next, to rows that are `stride` elements apart. from: where the first is in data.
  template <class T>
  CONVGRU_DEVICE void load(
      const T* data, int64_t from, int64_t pixel_stride, int count, bool aligned, int row, int apart, T* to,
      int stride) const {
    for (int i = row, within = i, pixel = i; i < shape_.rows; i += apart) {
      // Between the rows of the kernel pixels are left out that no tap reaches.
      if (between_ > 0 && within >= shape_.step) {
        within -= shape_.step;
        pixel += between_;
        from += between_ * pixel_stride;
      }
      if (pixel >= begin_ && pixel < end_) load_channels(data + (count > 0 ? from : 0), count, aligned, to);
      within += apart;
      pixel += apart;
      from += apart * pixel_stride;
      to += apart * stride;
    }
  }

 private:
  WindowShape<Config> shape_;
  int between_;
  int64_t first_;  // from there to the pixels that there are:
  int begin_, end_;
};

// What one thread copies of the windows of a tile, of kDepth channels after kDepth channels, source by
// source.
template <class T, class Config>
class WindowLoader {
 public:
  CONVGRU_DEVICE WindowLoader(const Convolution<T>& conv, int64_t first_row)
      : conv_(conv), pixels_(conv, first_row) {
    begin_source(0);
  }

  // Starts to copy the next one.
  CONVGRU_DEVICE void load_next(T* window) {
    pixels_.load(
        data_, from_, pixel_stride_, channels_left<T>(channels_, channel_), aligned_, row(), kAtOnce,
        window + row() * Config::kStrideA + first_channel(), Config::kStrideA);
    from_ += kDepth<T>;
    channel_ += kDepth<T>;
    if (channel_ - first_channel() >= channels_ && source_ + 1 < conv_.source_count)
      begin_source(source_ + 1);
  }

 private:
  static constexpr int kVectors = kDepth<T> / kVector<T>, kAtOnce = Config::kThreads / kVectors;
  static_assert(kAtOnce <= Config::kTileRows);

  CONVGRU_DEVICE static int row() { return threadIdx.x / kVectors; }
  CONVGRU_DEVICE static int first_channel() { return threadIdx.x % kVectors * kVector<T>; }

  CONVGRU_DEVICE void begin_source(int index) {
    const Source<T>& source = conv_.sources[index];
    source_ = index;
    aligned_ = is_aligned(source);
    channels_ = source.channels;
    pixel_stride_ = source.pixel_stride;
    channel_ = first_channel();
    data_ = source.data;
    from_ = pixels_.offset(source, channel_) + row() * pixel_stride_;
  }

  const Convolution<T>& conv_;
  WindowPixels<Config> pixels_;
  // Of what is copied next.
  int source_, channels_, channel_;
  int64_t pixel_stride_, from_;
  const T* data_;
  bool aligned_;
};

// Taps that a kernel has at most, for windows.
constexpr int kMostTaps = 64;

// Which row of its window a tap finds under each row of a tile: that of zeros where there is no pixel. In
// shared memory, tap by tap, for some tiles one after the other.
template <class T, class Config>
class Taps {
 public:
  CONVGRU_HOST_DEVICE static int elements(const Convolution<T>& conv, int tiles) {
    const int taps = conv.kernel_h * conv.kernel_w;
    return tiles * taps * Config::kTileRows * static_cast<int>(sizeof(uint16_t)) /
           static_cast<int>(sizeof(T));
  }

  CONVGRU_DEVICE explicit Taps(T* shared) : rows_(reinterpret_cast<uint16_t*>(shared)) {}

  // Before a barrier. Tiles are row_step rows apart.
  CONVGRU_DEVICE void find(const Convolution<T>& conv, int64_t first_row, int64_t row_step, int tiles) const {
    constexpr int kAtOnce = Config::kThreads / Config::kTileRows;
    const WindowShape<Config> shape(conv);
    const int taps = conv.kernel_h * conv.kernel_w, row = threadIdx.x % Config::kTileRows;
    const int64_t rows = conv.batch * conv.height * conv.width;
    for (int tile = 0; tile < tiles; ++tile, first_row += row_step) {
      if (first_row >= rows) break;
      const Place place = place_of(conv, first_row + row);
      for (int tap = threadIdx.x / Config::kTileRows; tap < taps; tap += kAtOnce) {
        const int y = tap / conv.kernel_w, x = tap % conv.kernel_w;
        const bool has = place.has(y - conv.kernel_h / 2, x - conv.kernel_w / 2, conv.height, conv.width);
        rows_[(tile * taps + tap) * Config::kTileRows + row] =
            static_cast<uint16_t>(has ? row + y * shape.step + x : shape.rows);
      }
    }
  }

  // Where those lie that this thread gives to Products, after find() and a barrier. tap: counted through the
  // taps of all tiles. stride: between rows of the window.
  template <int kDown>
  CONVGRU_DEVICE void at(int tap, const T* window, int stride, const T* (&rows)[kDown]) const {
    const uint16_t* const of_tap = rows_ + tap * Config::kTileRows;
#pragma unroll
    for (int i = 0; i < kDown; ++i) rows[i] = window + of_tap[Config::Products::row(i)] * stride;
  }

 private:
  uint16_t* rows_;
};

// Steps of the depth with channels, of a piece that has so many.
template <class Products>
CONVGRU_DEVICE int steps_of(int channels) {
  static_assert(Products::kSteps <= 2);
  return channels > (Products::kSteps - 1) * Products::kStep ? Products::kSteps : 1;
}

// The shared memory of convolve_window_kernel: rows of taps, two windows, a ring of weights; or then the
// sums.
template <class T, class Config>
struct WindowRoom {
  static constexpr int kPieceElements = kDepth<T> * Config::kStrideB;

  static size_t bytes(const Convolution<T>& conv) {
    const size_t elements = Taps<T, Config>::elements(conv, 1) +
                            2 * WindowShape<Config>(conv).elements(Config::kStrideA) +
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
  constexpr int kPieceElements = WindowRoom<T, Config>::kPieceElements;
  const int64_t first_row = int64_t{blockIdx.x} * Config::kTileRows;
  const int first_column = blockIdx.y * Config::kTileColumns, taps = conv.kernel_h * conv.kernel_w;
  T* const shared = reinterpret_cast<T*>(dynamic_shared());
  const WindowShape<Config> shape(conv);
  const int window_elements = shape.elements(Config::kStrideA);
  T* const windows = shared + Taps<T, Config>::elements(conv, 1);
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
  const Taps<T, Config> tap_rows(shared);
  int tap = 0, chunk = 0;
  const T* window = windows;
  const T* rows[Products::kDown];
  bool all = steps_of<Products>(conv.channels_from(0)) == Products::kSteps;
  Products products;
  const int left_offset = in_register(Products::left_offset());
  const int right_offset = in_register(Products::right_offset());
  const auto add = [&](int, int stage) {
    if (all)
      products.add(rows, weights + right_offset + stage * kPieceElements);
    else
      products.template add<1>(rows, weights + right_offset + stage * kPieceElements);
    if (++tap == taps) {
      tap = 0;
      window = the_other(window);
      all = steps_of<Products>(conv.channels_from(++chunk)) == Products::kSteps;
    }
    tap_rows.at(tap, window + left_offset, Config::kStrideA, rows);
  };

  TileEpilogue<T, Config, Epilogue> tile_epilogue(conv, epilogue, first_row, first_column);
  const auto meanwhile = [&] {
    tile_epilogue.fetch_early();
    tap_rows.find(conv, first_row, 0, 1);
    shape.write_zeros(windows, 2, Config::kStrideA);
    __syncthreads();
    tap_rows.at(tap, window + left_offset, Config::kStrideA, rows);
  };
  add_pieces<Config::kStages, /*kAddFirst=*/true>(conv.pieces_of_columns(first_column), load, add, meanwhile);
  tile_epilogue.finish(products, shared);
}

}  // namespace convgru::cuda
