// The pointwise convolutions of every type, by multiply-adds; in the namespace CONVGRU_ISA.
#include "convolution_kernels.inl"
#include "pointwise.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// What pointwise.inl asks for.
template <class T>
struct MultiplyAdds {
  using A = acc_t<T>;
  using X = A;
  static constexpr int kDotRows = 6, kDotOuts = 4, kRows = CONVGRU_TILE_ROWS;

  static void copy_row(const T* from, int64_t channels, A* to) {
    for_lanes<A>(channels, [&](int64_t k, auto lanes) { store<A>(to + k, load(from + k, lanes), lanes); });
  }

  template <int kRows, int kOuts>
  static void dot(const A* x, int64_t x_stride, const T* const* w, int64_t depth, A* y) {
    Vec<A> sum[kRows][kOuts];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
      for (int o = 0; o < kOuts; ++o) sum[row][o] = Vec<A>{};
    for_lanes<A>(depth, [&](int64_t i, auto lanes) {
      Vec<A> right[kOuts];
      for (int o = 0; o < kOuts; ++o) {
        right[o] = load(w[o] + i, lanes);
        __builtin_prefetch(w[o] + i + 8 * kLanes<A>);
      }
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const Vec<A> left = load(x + row * x_stride + i, lanes);
        for (int o = 0; o < kOuts; ++o) sum[row][o] = fma_vec(left, right[o], sum[row][o]);
      }
    });
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) add_lane_sums<kOuts, A>(sum[row], y + row * kBlock<A>);
  }

  template <int kRows>
  static void outer(
      const A* x, int64_t x_stride, const T* w, int64_t w_stride, int64_t channels, int64_t depth, A* c) {
    Vec<A> sum[kRows][2];
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) sum[row][0] = sum[row][1] = Vec<A>{};
    const auto run = [&](const auto& load_row) {
      for (int64_t i = 0; i < depth; ++i) {
        Vec<A> right[2];
        load_row(w + i * w_stride, right);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          const Vec<A> left = splat(x[row * x_stride + i]);
          for (int v = 0; v < 2; ++v) sum[row][v] = fma_vec(left, right[v], sum[row][v]);
        }
      }
    };
    if (channels == kBlock<A>) {
      run([](const T* row, Vec<A>* right) {
        for (int v = 0; v < 2; ++v) {
          right[v] = load_vec(row + v * kLanes<A>);
          __builtin_prefetch(row + (2 + v) * kLanes<A>);  // of the next block
        }
      });
    } else {
      run([&](const T* row, Vec<A>* right) { load_columns(row, channels, right); });
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row)
      for (int v = 0; v < 2; ++v) {
        A* target = c + (2 * row + v) * kLanes<A>;
        store_vec(target, load_vec(target) + sum[row][v]);
      }
  }

  // [pixels][kRows]
  static void pack_rows(const T* grad, int64_t pixel_stride, int64_t pixels, int64_t rows, A* left) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t row = 0; row < rows; ++row)
        left[pixel * kRows + row] = widen(grad[pixel * pixel_stride + row]);
  }

  // [pixels][kBlock]
  static void pack_columns(const T* x, int64_t pixel_stride, int64_t pixels, int64_t channels, A* panel) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      Vec<A> row[2];
      load_columns(x + pixel * pixel_stride, channels, row);
      for (int v = 0; v < 2; ++v) store_vec(panel + pixel * kBlock<A> + v * kLanes<A>, row[v]);
    }
  }

  template <int kCount>
  static void gradient(
      int64_t pixels, const A* left, const A* x, int64_t channels, T* target, int64_t row_stride) {
    A sums[kCount * kBlock<A>];
    multiply<Layout::kColumns, kCount, 2>(left, kRows, x, sums, pixels, false);
    for (int row = 0; row < kCount; ++row)
      for_lanes<A>(channels, [&](int64_t k, auto lanes) {
        store(target + row * row_stride + k, load(sums + row * kBlock<A> + k, lanes), lanes);
      });
  }

 private:
  // The first `channels` elements of two vectors, zeros beyond.
  static void load_columns(const T* row, int64_t channels, Vec<A>* right) {
    right[1] = Vec<A>{};
    int v = 0;
    for_lanes<A>(channels, [&](int64_t k, auto lanes) { right[v++] = load(row + k, lanes); });
  }
};

}  // namespace

extern const PointwiseKernels<float> kFloatPointwise = kPointwise<MultiplyAdds<float>, float>;
extern const PointwiseKernels<double> kDoublePointwise = kPointwise<MultiplyAdds<double>, double>;
extern const PointwiseKernels<bfloat16> kBFloat16Pointwise = kPointwise<MultiplyAdds<bfloat16>, bfloat16>;
extern const PointwiseKernels<float16> kFloat16Pointwise = kPointwise<MultiplyAdds<float16>, float16>;

}  // namespace convgru::cpu::CONVGRU_ISA
