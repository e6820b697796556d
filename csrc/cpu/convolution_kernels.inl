// The kernels of convolution.h; compiled once for each instruction set, in the namespace CONVGRU_ISA, with
// products of CONVGRU_TILE_ROWS rows by two vectors, which fill the registers.
#include "blocks.inl"
#include "transpose.inl"
#include "winograd_transforms.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// How the left factor of a product lies in memory: element (row, i) at row * stride + i, or at i * stride +
// row.
enum class Layout { kRows, kColumns };

// c [kRows][kVectors] (+)= a [kRows][depth] times b [depth][kVectors]; rows of b and c are 2 vectors apart.
template <Layout kLayout, int kRows, int kVectors, class A>
inline void multiply(const A* a, int64_t stride, const A* b, A* c, int64_t depth, bool accumulate) {
  Vec<A> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) sum[row][v] = Vec<A>{};
  for (int64_t i = 0; i < depth; ++i) {
    Vec<A> right[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      right[v] = load_vec(b + (2 * i + v) * kLanes<A>);
      __builtin_prefetch(b + (2 * (i + kChain) + v) * kLanes<A>);  // of the next chain
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vec<A> left = splat(kLayout == Layout::kRows ? a[row * stride + i] : a[i * stride + row]);
      for (int v = 0; v < kVectors; ++v) sum[row][v] = fma_vec(left, right[v], sum[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) {
      A* target = c + (2 * row + v) * kLanes<A>;
      store_vec(target, accumulate ? load_vec(target) + sum[row][v] : sum[row][v]);
    }
}

template <Layout kLayout, int kRows, int kVectors, class A>
void multiply_rows(
    int64_t rows, const A* a, int64_t stride, const A* b, A* c, int64_t depth, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      multiply<kLayout, kRows, kVectors>(a, stride, b, c, depth, accumulate);
    else
      multiply_rows<kLayout, kRows - 1, kVectors>(rows, a, stride, b, c, depth, accumulate);
  }
}

// A product of any size. For each chain, whose part of b fits the first-level cache, the rows in as few
// passes as the registers allow, and those as even as possible.
template <Layout kLayout, int kVectors, class A>
void multiply_all(
    int64_t rows, const A* a, int64_t stride, const A* b, A* c, int64_t depth, bool accumulate) {
  const int64_t passes = (rows + CONVGRU_TILE_ROWS - 1) / CONVGRU_TILE_ROWS;
  for (int64_t first = 0; first < depth; first += kChain) {
    const int64_t length = first + kChain < depth ? kChain : depth - first;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t row = rows * pass / passes, end = rows * (pass + 1) / passes;
      const int64_t offset = kLayout == Layout::kRows ? row * stride + first : first * stride + row;
      multiply_rows<kLayout, CONVGRU_TILE_ROWS, kVectors>(
          end - row, a + offset, stride, b + first * kBlock<A>, c + row * kBlock<A>, length,
          accumulate || first > 0);
    }
  }
}

// The product of the rows of a panel with one block of output channels, of which `channels` count.
template <Layout kLayout, class A>
void multiply_block(
    int64_t channels, int64_t rows, const A* a, int64_t stride, const A* b, A* c, int64_t depth,
    bool accumulate) {
  if (channels > kLanes<A>)
    multiply_all<kLayout, 2>(rows, a, stride, b, c, depth, accumulate);
  else
    multiply_all<kLayout, 1>(rows, a, stride, b, c, depth, accumulate);
}

// Where a tile lies: its image and the first of its outputs.
struct TilePosition {
  int64_t image, top, left;
};

// The tiles of images in the order in which they are worked on. Tiles at the lower or right edge of which
// only some outputs count do not use every position (Scheme::used_points); so that those that do use one
// follow each other, first come the tiles at the lower edge, then the whole ones, those at the right edge and
// at last those in the corner; within each of these kinds image by image, row by row.
template <Scheme kScheme>
class Tiles {
 public:
  Tiles(int64_t batch, int64_t height, int64_t width)
      : height_(height),
        width_(width),
        whole_h_(height / kScheme.tile_h),
        whole_w_(width / kScheme.tile_w),
        edge_h_(height % kScheme.tile_h),
        edge_w_(width % kScheme.tile_w) {
    const int64_t corner_h = edge_h_ > 0, corner_w = edge_w_ > 0;
    end_[kLower] = batch * corner_h * whole_w_;
    end_[kWhole] = end_[kLower] + batch * whole_h_ * whole_w_;
    end_[kRight] = end_[kWhole] + batch * whole_h_ * corner_w;
    end_[kCorner] = end_[kRight] + batch * corner_h * corner_w;
  }

  TilePosition operator[](int64_t tile) const {
    int kind = kLower;
    while (kind < kCorner && tile >= end_[kind]) ++kind;
    const bool lower = kind == kLower || kind == kCorner, right = kind >= kRight;
    const int64_t rows = lower ? 1 : whole_h_, columns = right ? 1 : whole_w_;
    const int64_t i = tile - (kind == kLower ? 0 : end_[kind - 1]);
    const int64_t image = i / (rows * columns), rest = i % (rows * columns);
    return {
        image, (rest / columns + (lower ? whole_h_ : 0)) * kScheme.tile_h,
        (rest % columns + (right ? whole_w_ : 0)) * kScheme.tile_w};
  }

  // Sets the position, that of a tile, to that of the next, if there is one.
  void advance(TilePosition& position, int64_t tile) const {
    if (position.left + 2 * kScheme.tile_w <= width_)
      position.left += kScheme.tile_w;
    else if (tile + 1 < end_[kCorner])
      position = (*this)[tile + 1];
  }

  int64_t rows(TilePosition tile) const {
    return height_ - tile.top < kScheme.tile_h ? height_ - tile.top : kScheme.tile_h;
  }
  int64_t columns(TilePosition tile) const {
    return width_ - tile.left < kScheme.tile_w ? width_ - tile.left : kScheme.tile_w;
  }

  // Of the tiles first + [0, count) those that use a position, as a range of such numbers.
  struct Range {
    int64_t begin, end;
  };
  Range using_position(int position, int64_t first, int64_t count) const {
    const bool not_lower = edge_h_ > 0 && position / kScheme.input_w() >= kScheme.used_h(edge_h_);
    const bool not_right = edge_w_ > 0 && position % kScheme.input_w() >= kScheme.used_w(edge_w_);
    const auto clamp = [&](int64_t tile) {
      return tile < first ? 0 : tile > first + count ? count : tile - first;
    };
    const int64_t begin = clamp(not_lower ? end_[kLower] : 0);
    return {begin, clamp(not_right ? end_[kWhole] : not_lower ? end_[kRight] : end_[kCorner])};
  }

  // From the first to the last of the tiles first + [0, count).
  Rows image_rows(int64_t first, int64_t count) const {
    Rows rows{INT64_MAX, 0};
    for (int kind = kLower; kind <= kCorner; ++kind) {
      const int64_t start = kind == kLower ? 0 : end_[kind - 1];
      const int64_t begin = first > start ? first : start;
      const int64_t end = first + count < end_[kind] ? first + count : end_[kind];
      if (begin >= end) continue;
      const TilePosition upper = (*this)[begin], lower = (*this)[end - 1];
      const int64_t top = upper.image * height_ + upper.top;
      const int64_t bottom = lower.image * height_ + lower.top + this->rows(lower);
      if (top < rows.begin) rows.begin = top;
      if (bottom > rows.end) rows.end = bottom;
    }
    return rows;
  }

 private:
  enum Kind { kLower, kWhole, kRight, kCorner };
  int64_t height_, width_, whole_h_, whole_w_, edge_h_, edge_w_;
  int64_t end_[4];
};

// Addresses of the pixels of a window of images (height,width), `zeros` for those outside.
template <int kRows, int kColumns, class T>
inline void window(
    int64_t image, int64_t top, int64_t left, int64_t height, int64_t width, const T* x, int64_t stride,
    const T* zeros, const T** pixels) {
  const T* corner = x + ((image * height + top) * width + left) * stride;
  if (top >= 0 && top + kRows <= height && left >= 0 && left + kColumns <= width) {
    for (int a = 0; a < kRows; ++a)
      for (int b = 0; b < kColumns; ++b) pixels[kColumns * a + b] = corner + (a * width + b) * stride;
    return;
  }
  for (int a = 0; a < kRows; ++a) {
    const bool row_inside = top + a >= 0 && top + a < height;
    for (int b = 0; b < kColumns; ++b) {
      const bool inside = row_inside && left + b >= 0 && left + b < width;
      pixels[kColumns * a + b] = inside ? corner + (a * width + b) * stride : zeros;
    }
  }
}

// The transformed inputs of one tile of which rows x columns outputs count, at target; a position of the
// transformed tile is position_step from the next. Writes up to a vector beyond the channels.
template <class T, Scheme kScheme>
inline void winograd_panel_row(
    TilePosition tile, int64_t rows, int64_t columns, int64_t height, int64_t width, const Source<T>& x,
    const T* zeros, acc_t<T>* target, int64_t position_step) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w(), kPositions = kScheme.positions();
  const T* pixels[kPositions];
  window<kInputH, kInputW>(
      tile.image, tile.top - kScheme.kernel_h / 2, tile.left - kScheme.kernel_w / 2, height, width, x.data,
      x.pixel_stride, zeros, pixels);
  const bool whole = rows == kScheme.tile_h && columns == kScheme.tile_w;
  for_lanes<float>(x.channels, [&](int64_t channel, auto lanes) {
    // Copies, which no store can change.
    const T* const* const from = pixels;
    float* const to = target + channel;
    const int64_t step = position_step;
    const auto get = [=](int a, int b) __attribute__((always_inline)) {
      return load(from[kInputW * a + b] + channel, lanes);
    };
    const auto put = [=](int a, int b, FloatVec value)
                         __attribute__((always_inline)) { store_vec(to + (kInputW * a + b) * step, value); };
    if (whole)
      transform_input<Rows, Columns, kInputH, kInputW>(get, put);
    else
      transform_input_edge<Rows, Columns, kInputH, kInputW>(
          rows, columns, kScheme.used_h(rows), kScheme.used_w(columns), get, put);
  });
}

// The inputs of one pixel, tap after tap.
template <class T>
inline void direct_panel_row(
    TilePosition pixel, int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w, const Source<T>& x,
    acc_t<T>* target) {
  using A = acc_t<T>;
  for (int64_t a = 0; a < kernel_h; ++a)
    for (int64_t b = 0; b < kernel_w; ++b) {
      const int64_t row = pixel.top + a - kernel_h / 2, column = pixel.left + b - kernel_w / 2;
      if (row >= 0 && row < height && column >= 0 && column < width) {
        const T* source = x.data + ((pixel.image * height + row) * width + column) * x.pixel_stride;
        for_lanes<A>(x.channels, [&](int64_t channel, auto lanes) {
          store<A>(target + channel, load(source + channel, lanes), lanes);
        });
      } else {
        for (int64_t channel = 0; channel < x.channels; ++channel) target[channel] = A(0);
      }
      target += x.channels;
    }
}

template <class T, Scheme kScheme>
inline void panel_row(
    const Tiles<kScheme>& tiles, TilePosition tile, int64_t height, int64_t width, int64_t kernel_h,
    int64_t kernel_w, const Source<T>& x, const T* zeros, acc_t<T>* target, int64_t position_step) {
  if constexpr (kScheme.direct())
    direct_panel_row(tile, height, width, kernel_h, kernel_w, x, target);
  else
    winograd_panel_row<T, kScheme>(
        tile, tiles.rows(tile), tiles.columns(tile), height, width, x, zeros, target, position_step);
}

template <class T, Scheme kScheme>
void pack(int64_t begin, int64_t end, const Weights<T>& weights, acc_t<T>* packed, bool past_cache) {
  using A = acc_t<T>;
  constexpr int kMostTaps = kScheme.direct() ? 1 : kScheme.kernel_h * kScheme.kernel_w;
  constexpr int kPositions = kScheme.positions();
  const int64_t kernel_h = weights.kernel_h, kernel_w = weights.kernel_w, taps = kernel_h * kernel_w;
  const int64_t depth = kScheme.direct() ? taps * weights.in : weights.in;
  const auto put = [&](A* target, Vec<A> value) {
    if (past_cache)
      store_past_cache(target, value);
    else
      store_vec(target, value);
  };
  for (int64_t half = 2 * begin; half < 2 * end; ++half) {
    const int64_t block = half / 2, first = half * kLanes<A>;
    for (int p = 0; p < weights.count; ++p) {
      const WeightPart<T>& part = weights.parts[p];
      int64_t offsets[kLanes<A>];  // of the lanes' output channels, or -1
      for (int lane = 0; lane < kLanes<A>; ++lane)
        offsets[lane] = first + lane < weights.out ? part.outs[first + lane] * part.out_stride : -1;
      const auto gather = [&](int64_t i, int64_t a, int64_t b) {
        T row[kLanes<A>] = {};
        const T* source = part.data + i * part.in_stride + a * part.row_stride + b * part.column_stride;
        for (int lane = 0; lane < kLanes<A>; ++lane)
          if (offsets[lane] >= 0) row[lane] = source[offsets[lane]];
        return load_vec(row);
      };
      const auto target = [&](int position, int64_t row) {
        return packed + ((block * kPositions + position) * depth + row) * kBlock<A> + half % 2 * kLanes<A>;
      };
      for (int64_t i = 0; i < part.channels; ++i) {
        if constexpr (kScheme.direct()) {
          for (int64_t tap = 0; tap < taps; ++tap)
            put(target(0, taps * part.first + tap * part.channels + i),
                gather(i, tap / kernel_w, tap % kernel_w));
        } else {
          using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
          using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
          constexpr int kKernelW = kScheme.kernel_w;
          constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w();
          FloatVec g[kMostTaps], partial[kInputH * kKernelW], u[kPositions];
          for (int tap = 0; tap < kMostTaps; ++tap) g[tap] = gather(i, tap / kKernelW, tap % kKernelW);
          for (int b = 0; b < kKernelW; ++b) Rows::weight(g + b, kKernelW, partial + b, kKernelW);
          for (int a = 0; a < kInputH; ++a) Columns::weight(partial + kKernelW * a, 1, u + kInputW * a, 1);
          for (int position = 0; position < kPositions; ++position)
            put(target(position, part.first + i), u[position]);
        }
      }
    }
  }
  if (past_cache) stores_done();
}

// Collects the sums of pixels until there are enough for a call of the epilogue.
template <class T>
class Sums {
 public:
  using A = acc_t<T>;

  Sums(const Epilogue<T>& epilogue, int64_t channel, int64_t channels)
      : epilogue_(epilogue), channel_(channel), channels_(channels) {}

  // Room for the sums of `count` pixels, kBlock each.
  A* room(int64_t count) {
    if (count_ + count > kEpiloguePixels) flush();
    return c_ + count_ * kBlock<A>;
  }

  // The i-th pixel in the room has been filled in. Those that are left out leave no gap.
  void add(int64_t pixel, const A* room, int64_t i) {
    A* target = c_ + count_ * kBlock<A>;
    if (target != room + i * kBlock<A>) memcpy(target, room + i * kBlock<A>, kBlock<A> * sizeof(A));
    pixels_[count_++] = pixel;
  }

  void flush() {
    if (count_ > 0) epilogue_.apply(epilogue_.arguments, pixels_, count_, channel_, channels_, c_, kBlock<A>);
    count_ = 0;
  }

 private:
  const Epilogue<T>& epilogue_;
  int64_t channel_, channels_, count_ = 0;
  int64_t pixels_[kEpiloguePixels];
  alignas(64) A c_[kEpiloguePixels * kBlock<A>];
};

// Remembers whether a value was infinite or NaN.
class FiniteCheck {
 public:
  void see(FloatVec value) { zero_ = fma_vec(value, FloatVec{}, zero_); }
  bool failed() const {
    const IntVec unequal = zero_ != zero_;
    int any = 0;
    for (int lane = 0; lane < kLanes<float>; ++lane) any |= unequal[lane];
    return any != 0;
  }

 private:
  FloatVec zero_{};
};

// The products of `count` tiles [positions][tiles_per_block][kBlock], positions `stride` apart, transformed
// back, to the epilogue.
template <class T, Scheme kScheme>
void winograd_sums(
    const Tiles<kScheme>& tiles, int64_t first_tile, int64_t count, const Work& p, const float* products,
    int64_t stride, int64_t channel, int64_t channels, const Epilogue<T>& epilogue,
    const NotFinite& not_finite) {
  using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
  using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
  constexpr int kTileH = kScheme.tile_h, kTileW = kScheme.tile_w;
  constexpr int kInputW = kScheme.input_w();
  static_assert(kTileH * kTileW <= kEpiloguePixels);
  Sums<T> sums(epilogue, channel, channels);
  const int halves = channels > kLanes<float> ? 2 : 1;
  TilePosition position = tiles[first_tile];
  for (int64_t tile = 0; tile < count; tiles.advance(position, first_tile + tile++)) {
    float* const room = sums.room(kTileH * kTileW);
    FiniteCheck finite;
    for (int half = 0; half < halves; ++half) {
      const float* const m = products + tile * kBlock<float> + half * kLanes<float>;
      transform_output<Rows, Columns, kTileH, kTileW, kInputW>(
          [=](int a, int b)
              __attribute__((always_inline)) { return load_vec(m + (kInputW * a + b) * stride); },
          [&](int a, int b, FloatVec sum) __attribute__((always_inline)) {
            finite.see(sum);
            store_vec(room + (kTileW * a + b) * kBlock<float> + half * kLanes<float>, sum);
          });
    }
    const auto [image, top, left] = position;
    const int64_t corner = (image * p.height + top) * p.width + left;
    const int64_t rows = tiles.rows(position), columns = tiles.columns(position);
    for (int64_t a = 0; a < rows; ++a)
      for (int64_t b = 0; b < columns; ++b) sums.add(corner + a * p.width + b, room, kTileW * a + b);
    if (finite.failed()) not_finite.note(image);
  }
  sums.flush();
}

template <class T, Scheme kScheme>
void convolve(
    int64_t begin, int64_t end, const Work& p, const Input<T>& input, int64_t out, const acc_t<T>* packed,
    const Epilogue<T>& epilogue, const NotFinite& not_finite) {
  using A = acc_t<T>;
  constexpr int kPositions = kScheme.positions();
  const int64_t taps = kScheme.direct() ? p.kernel_h * p.kernel_w : 1;
  const int64_t in = input.channels(), depth = taps * in;
  const int64_t all_tiles = p.tiles(kScheme), tile_count = p.tiles_per_block;
  const Tiles<kScheme> tiles(p.batch, p.height, p.width);
  const int64_t blocks = (out + kBlock<A> - 1) / kBlock<A>, stride = panel_stride<A>(depth);
  const int64_t unit = p.channel_unit > kBlock<A> ? p.channel_unit / kBlock<A> : 1;  // blocks
  const int64_t units = (blocks + unit - 1) / unit;
  const int64_t panel_position = position_stride<A>(tile_count * stride + kLanes<A>);
  const int64_t products_position = position_stride<A>(tile_count * kBlock<A>);
  A* panel = scratch<A>(kPositions * (panel_position + products_position) + in);
  A* products = panel + kPositions * panel_position;
  A* zeros = products + kPositions * products_position;
  for (int64_t i = 0; i < in; ++i) zeros[i] = A(0);

  int64_t tile_block_of_panel = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile_block = item / p.channel_splits, split = item % p.channel_splits;
    const int64_t first_tile = tile_block * tile_count;
    const int64_t count = first_tile + tile_count < all_tiles ? tile_count : all_tiles - first_tile;

    if (tile_block != tile_block_of_panel) {
      tile_block_of_panel = tile_block;
      TilePosition position = tiles[first_tile];
      for (int64_t tile = 0; tile < count; tiles.advance(position, first_tile + tile++)) {
        A* target = panel + tile * stride;
        for (int s = 0; s < input.count; ++s) {
          panel_row<T, kScheme>(
              tiles, position, p.height, p.width, p.kernel_h, p.kernel_w, input.sources[s],
              reinterpret_cast<const T*>(zeros), target, panel_position);
          target += taps * input.sources[s].channels;
        }
      }
    }

    const auto split_begin = [&](int64_t i) {
      const int64_t block = units * i / p.channel_splits * unit;
      return block < blocks ? block : blocks;
    };
    for (int64_t block = split_begin(split); block < split_begin(split + 1); ++block) {
      const int64_t channel = block * kBlock<A>;
      const int64_t channels = out - channel < kBlock<A> ? out - channel : kBlock<A>;
      for (int position = 0; position < kPositions; ++position) {
        const auto [first, last] = tiles.using_position(position, first_tile, count);
        A* target = products + position * products_position;
        multiply_block<Layout::kRows>(
            channels, last - first, panel + position * panel_position + first * stride, stride,
            packed + (block * kPositions + position) * depth * kBlock<A>, target + first * kBlock<A>, depth,
            false);
        // A position that is not used adds nothing.
        for (int64_t i = 0; i < first * kBlock<A>; ++i) target[i] = A(0);
        for (int64_t i = last * kBlock<A>; i < count * kBlock<A>; ++i) target[i] = A(0);
      }
      if constexpr (kScheme.direct())
        direct_sums(first_tile, count, products, channel, channels, epilogue);
      else
        winograd_sums<T, kScheme>(
            tiles, first_tile, count, p, products, products_position, channel, channels, epilogue,
            not_finite);
    }
  }
}

template <Scheme kScheme>
Rows rows_of_tiles(int64_t batch, int64_t height, int64_t width, int64_t first, int64_t count) {
  return Tiles<kScheme>(batch, height, width).image_rows(first, count);
}

template <class T>
void without_sums(int64_t begin, int64_t end, int64_t out, const Epilogue<T>& epilogue) {
  using A = acc_t<T>;
  alignas(64) static constexpr A kZeros[kEpiloguePixels * kBlock<A>] = {};
  for (int64_t first = begin; first < end; first += kEpiloguePixels) {
    int64_t pixels[kEpiloguePixels];
    for (int64_t i = 0; i < kEpiloguePixels; ++i) pixels[i] = first + i;
    const int64_t count = end - first < kEpiloguePixels ? end - first : kEpiloguePixels;
    for (int64_t channel = 0; channel < out; channel += kBlock<A>)
      epilogue.apply(
          epilogue.arguments, pixels, count, channel, out - channel < kBlock<A> ? out - channel : kBlock<A>,
          kZeros, kBlock<A>);
  }
}

// Elements from one position of a chunk's panels to the next.
template <class A, Scheme kScheme>
int64_t x_position_stride(const GradientWork& p) {
  return position_stride<A>(p.tiles_per_chunk * p.x_stride<A>(kScheme));
}
template <class A>
int64_t grad_position_stride(const GradientWork& p) {
  return position_stride<A>((p.out + kBlock<A> - 1) / kBlock<A> * p.tiles_per_chunk * kBlock<A>);
}

template <class T, Scheme kScheme>
void gradient_panels(
    int64_t begin, int64_t end, const GradientWork& p, int64_t first_tile, const GradientInput<T>& x,
    const Source<T>& grad, acc_t<T>* x_panel, acc_t<T>* grad_panel) {
  using A = acc_t<T>;
  constexpr int kPositions = kScheme.positions();
  const int64_t taps = p.taps(kScheme), stride = p.x_stride<A>(kScheme);
  const int64_t x_position = x_position_stride<A, kScheme>(p), grad_position = grad_position_stride<A>(p);
  const int64_t channels = p.in > p.out ? p.in : p.out;
  A* memory = scratch<A>(channels);
  for (int64_t i = 0; i < channels; ++i) memory[i] = A(0);
  const T* zeros = reinterpret_cast<const T*>(memory);
  const auto grad_target = [&](int position, int64_t tile, int64_t channel) {
    const int64_t block = channel / kBlock<A>;
    return grad_panel + position * grad_position + (block * p.tiles_per_chunk + tile) * kBlock<A> +
           channel % kBlock<A>;
  };
  const Tiles<kScheme> tiles(p.batch, p.height, p.width);
  TilePosition position = tiles[first_tile + begin];
  for (int64_t tile = begin; tile < end; tiles.advance(position, first_tile + tile++)) {
    A* target = x_panel + tile * stride;
    for (int s = 0; s < x.count; ++s) {
      panel_row<T, kScheme>(
          tiles, position, p.height, p.width, p.kernel_h, p.kernel_w, x.sources[s], zeros, target,
          x_position);
      target += taps * x.sources[s].channels;
    }
    if constexpr (kScheme.direct()) {
      const T* source = grad.data + (first_tile + tile) * grad.pixel_stride;
      for_lanes<A>(p.out, [&](int64_t channel, auto lanes) {
        store_vec(grad_target(0, tile, channel), load(source + channel, lanes));
      });
    } else {
      using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
      using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
      constexpr int kTileH = kScheme.tile_h, kTileW = kScheme.tile_w;
      constexpr int kInputH = kScheme.input_h(), kInputW = kScheme.input_w();
      const T* pixels[kTileH * kTileW];
      window<kTileH, kTileW>(
          position.image, position.top, position.left, p.height, p.width, grad.data, grad.pixel_stride, zeros,
          pixels);
      for_lanes<float>(p.out, [&](int64_t channel, auto lanes) {
        FloatVec y[kTileH * kTileW], partial[kInputH * kTileW], u[kPositions];
        for (int pixel = 0; pixel < kTileH * kTileW; ++pixel) y[pixel] = load(pixels[pixel] + channel, lanes);
        for (int b = 0; b < kTileW; ++b) Rows::output_gradient(y + b, kTileW, partial + b, kTileW);
        for (int a = 0; a < kInputH; ++a)
          Columns::output_gradient(partial + kTileW * a, 1, u + kInputW * a, 1);
        for (int position = 0; position < kPositions; ++position)
          store_vec(grad_target(position, tile, channel), u[position]);
      });
    }
  }
}

template <class A, Scheme kScheme>
void gradient_products(
    int64_t begin, int64_t end, const GradientWork& p, int64_t first_tile, int64_t count, bool accumulate,
    const A* x_panel, const A* grad_panel, A* const* sums) {
  const Tiles<kScheme> tiles(p.batch, p.height, p.width);
  const int64_t taps = p.taps(kScheme), stride = p.x_stride<A>(kScheme);
  const int64_t x_position = x_position_stride<A, kScheme>(p), grad_position = grad_position_stride<A>(p);
  int64_t first_item = 0;  // of the term
  for (int t = 0; t < p.term_count; ++t) {
    const GradientTerm& term = p.terms[t];
    const BlockRange blocks = blocks_of(term, kBlock<A>);
    const int64_t rows = taps * term.in, items = kScheme.positions() * blocks.count * term.row_splits;
    const int64_t first = begin > first_item ? begin : first_item;
    const int64_t last = end < first_item + items ? end : first_item + items;
    for (int64_t item = first - first_item; item < last - first_item; ++item) {
      const int64_t position = item / (blocks.count * term.row_splits);
      const int64_t split = item / blocks.count % term.row_splits, block = item % blocks.count;
      const int64_t row = rows * split / term.row_splits, end_row = rows * (split + 1) / term.row_splits;
      const auto [tile, end_tile] = tiles.using_position(position, first_tile, count);
      A* const target = sums[t] + ((position * blocks.count + block) * rows + row) * kBlock<A>;
      const int64_t size = (end_row - row) * kBlock<A>;
      // The direct sum keeps its rounding errors as small as PyTorch's: a chunk is summed up by itself first.
      const bool apart = kScheme.direct() && accumulate;
      A* const sum = apart ? scratch<A>(size) : target;
      if (tile == end_tile && !accumulate)
        for (int64_t i = 0; i < size; ++i) target[i] = A(0);
      multiply_block<Layout::kColumns>(
          p.out - (blocks.first + block) * kBlock<A>, end_row - row,
          x_panel + position * x_position + tile * stride + taps * term.first_in + row, stride,
          grad_panel + position * grad_position +
              ((blocks.first + block) * p.tiles_per_chunk + tile) * kBlock<A>,
          sum, end_tile - tile, accumulate && !apart);
      if (apart)
        for (int64_t i = 0; i < size; i += kLanes<A>)
          store_vec(target + i, load_vec(target + i) + load_vec(sum + i));
    }
    first_item += items;
  }
}

template <class T, Scheme kScheme>
void gradient_finish(
    int64_t begin, int64_t end, const GradientWork& p, const GradientTerm& term, const acc_t<T>* sums,
    T* gradient, const NotFinite& not_finite) {
  using A = acc_t<T>;
  constexpr int64_t kGroup = 16;  // input channels whose gradients are transposed together
  const BlockRange blocks = blocks_of(term, kBlock<A>);
  const int64_t taps = p.kernel_h * p.kernel_w, rows = p.taps(kScheme) * term.in;
  A* by_row = scratch<A>(2 * kGroup * taps * kLanes<A>);  // [channel of the group][tap][lane]
  A* by_lane = by_row + kGroup * taps * kLanes<A>;        // [lane][channel of the group][tap]
  FiniteCheck finite;
  for (int64_t half = 2 * begin; half < 2 * end; ++half) {
    const int64_t block = half / 2;
    // The output channels of the lanes, as numbers within the term.
    const int64_t first = blocks.first * kBlock<A> + half * kLanes<A> - term.first_out;
    const auto source = [&](int position, int64_t row) {
      return sums + ((position * blocks.count + block) * rows + row) * kBlock<A> + half % 2 * kLanes<A>;
    };
    if (first >= term.out) continue;
    for (int64_t i0 = 0; i0 < term.in; i0 += kGroup) {
      const int64_t group = term.in - i0 < kGroup ? term.in - i0 : kGroup;
      for (int64_t i = i0; i < i0 + group; ++i) {
        A* target = by_row + (i - i0) * taps * kLanes<A>;
        if constexpr (kScheme.direct()) {
          for (int64_t tap = 0; tap < taps; ++tap)
            store_vec(target + tap * kLanes<A>, load_vec(source(0, tap * term.in + i)));
        } else {
          using Rows = Transform<kScheme.tile_h, kScheme.kernel_h>;
          using Columns = Transform<kScheme.tile_w, kScheme.kernel_w>;
          constexpr int kKernelH = kScheme.kernel_h, kKernelW = kScheme.kernel_w;
          constexpr int kInputW = kScheme.input_w(), kPositions = kScheme.positions();
          FloatVec m[kPositions], partial[kKernelH * kInputW], g[kKernelH * kKernelW];
          for (int position = 0; position < kPositions; ++position)
            m[position] = load_vec(source(position, i));
          for (int b = 0; b < kInputW; ++b) Rows::weight_gradient(m + b, kInputW, partial + b, kInputW);
          for (int a = 0; a < kKernelH; ++a)
            Columns::weight_gradient(partial + kInputW * a, 1, g + kKernelW * a, 1);
          for (int tap = 0; tap < kKernelH * kKernelW; ++tap) {
            finite.see(g[tap]);
            store_vec(target + tap * kLanes<A>, g[tap]);
          }
        }
      }
      transpose(group * taps, kLanes<A>, by_row, kLanes<A>, by_lane, kGroup * taps);
      for (int64_t lane = 0; lane < kLanes<A>; ++lane) {
        const int64_t out = first + lane;
        if (out < 0 || out >= term.out) continue;
        for_lanes<A>(group * taps, [&](int64_t k, auto lanes) {
          store(
              gradient + (out * term.in + i0) * taps + k, load(by_lane + lane * kGroup * taps + k, lanes),
              lanes);
        });
      }
    }
  }
  if (finite.failed()) not_finite.note(0);
}

template <class T, Scheme kScheme>
constexpr ConvolutionKernels<T> kernels_of() {
  return {
      kScheme,
      kBlock<acc_t<T>>,
      pack<T, kScheme>,
      convolve<T, kScheme>,
      rows_of_tiles<kScheme>,
      gradient_panels<T, kScheme>,
      gradient_products<acc_t<T>, kScheme>,
      gradient_finish<T, kScheme>};
}

constexpr Scheme kDirectScheme{Algorithm::kDirect, 1, 1, 0, 0};

template <class T>
constexpr ConvolutionKernelSet<T> winograd_and_direct() {
  return {
      kernels_of<T, kDirectScheme>(),
      {
          kernels_of<T, Scheme{Algorithm::kWinograd4, 4, 4, 3, 3}>(),
          kernels_of<T, Scheme{Algorithm::kWinograd4, 1, 4, 1, 5}>(),
          kernels_of<T, Scheme{Algorithm::kWinograd4, 4, 1, 5, 1}>(),
          kernels_of<T, Scheme{Algorithm::kWinograd2, 2, 2, 3, 3}>(),
      },
      4,
      without_sums<T>};
}

}  // namespace

extern const ConvolutionKernelSet<float> kFloatConvolution = winograd_and_direct<float>();
extern const ConvolutionKernelSet<bfloat16> kBFloat16Convolution = winograd_and_direct<bfloat16>();
extern const ConvolutionKernelSet<float16> kFloat16Convolution = winograd_and_direct<float16>();
extern const ConvolutionKernelSet<double> kDoubleConvolution = {
    kernels_of<double, kDirectScheme>(), {}, 0, without_sums<double>};

}  // namespace convgru::cpu::CONVGRU_ISA
