// Convolutions by 1x1 kernels of few pixels: matrix products that read the weights where they lie, once. To
// pack them would take longer than to use them. In the namespace CONVGRU_ISA.
#include "convolution_kernels.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// y[row * kBlock + o] += sum over i of x[row * x_stride + i] * w[o][i].
template <int kRows, int kOuts, class T>
inline void dot_products(const T* x, int64_t x_stride, const T* const* w, int64_t depth, acc_t<T>* y) {
  using A = acc_t<T>;
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
  for (int row = 0; row < kRows; ++row)
    for (int o = 0; o < kOuts; ++o) {
      A parts[kLanes<A>];
      store_vec(parts, sum[row][o]);
      for (int half = kLanes<A> / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
      y[row * kBlock<A> + o] += parts[0];
    }
}

template <int kRows, int kOuts, class T>
void dot_product_rows(
    int64_t rows, const T* x, int64_t x_stride, const T* const* w, int64_t depth, acc_t<T>* y) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      dot_products<kRows, kOuts>(x, x_stride, w, depth, y);
    else
      dot_product_rows<kRows - 1, kOuts>(rows, x, x_stride, w, depth, y);
  }
}

// c [kRows][kBlock] += x [kRows][depth] times w [depth][kBlock], rows w_stride apart, of which `channels`
// count.
template <int kRows, class T>
inline void outer_products(
    const T* x, int64_t x_stride, const T* w, int64_t w_stride, int64_t channels, int64_t depth,
    acc_t<T>* c) {
  using A = acc_t<T>;
  Vec<A> sum[kRows][2];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) sum[row][0] = sum[row][1] = Vec<A>{};
  const auto run = [&](const auto& load_row) {
    for (int64_t i = 0; i < depth; ++i) {
      Vec<A> right[2];
      load_row(w + i * w_stride, right);
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const Vec<A> left = splat(widen(x[row * x_stride + i]));
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
    run([&](const T* row, Vec<A>* right) {
      right[1] = Vec<A>{};
      int v = 0;
      for_lanes<A>(channels, [&](int64_t k, auto lanes) { right[v++] = load(row + k, lanes); });
    });
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < 2; ++v) {
      A* target = c + (2 * row + v) * kLanes<A>;
      store_vec(target, load_vec(target) + sum[row][v]);
    }
}

template <int kRows, class T>
void outer_product_rows(
    int64_t rows, const T* x, int64_t x_stride, const T* w, int64_t w_stride, int64_t channels, int64_t depth,
    acc_t<T>* c) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      outer_products<kRows>(x, x_stride, w, w_stride, channels, depth, c);
    else
      outer_product_rows<kRows - 1>(rows, x, x_stride, w, w_stride, channels, depth, c);
  }
}

// Adds what one source gives to the sums [blocks][pixels][kBlock] of the blocks [first_block, end_block).
template <class T>
void add_source(
    const Source<T>& x, const WeightPart<T>& w, int64_t pixels, int64_t first_block, int64_t end_block,
    int64_t out, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int kDotRows = 6, kDotOuts = 4;
  const auto for_passes = [&](int64_t most, const auto& f) {
    const int64_t passes = (pixels + most - 1) / most;
    for (int64_t pass = 0; pass < passes; ++pass)
      f(pixels * pass / passes, pixels * (pass + 1) / passes - pixels * pass / passes);
  };
  if (w.in_stride == 1) {
    for (int64_t channel = first_block * kBlock<A>; channel < end_block * kBlock<A> && channel < out;) {
      const T* rows[kDotOuts];
      int outs = 0;
      for (; outs < kDotOuts && channel + outs < out && w.outs[channel + outs] >= 0 &&
             (channel % kBlock<A> + outs) < kBlock<A>;
           ++outs)
        rows[outs] = w.data + w.outs[channel + outs] * w.out_stride;
      A* y = sums + (channel / kBlock<A> - first_block) * pixels * kBlock<A> + channel % kBlock<A>;
      for_passes(kDotRows, [&](int64_t row, int64_t count) {
        const T* x_rows = x.data + row * x.pixel_stride;
        A* y_rows = y + row * kBlock<A>;
        if (outs == kDotOuts)
          dot_product_rows<kDotRows, kDotOuts>(count, x_rows, x.pixel_stride, rows, x.channels, y_rows);
        else
          for (int o = 0; o < outs; ++o)
            dot_product_rows<kDotRows, 1>(count, x_rows, x.pixel_stride, rows + o, x.channels, y_rows + o);
      });
      channel += outs > 0 ? outs : 1;  // one that does not see this source
    }
    return;
  }
  for (int64_t i = 0; i < x.channels; i += kChain) {
    const int64_t depth = x.channels - i < kChain ? x.channels - i : kChain;
    for (int64_t block = first_block; block < end_block; ++block) {
      const int64_t channel = block * kBlock<A>;
      const int64_t channels = out - channel < kBlock<A> ? out - channel : kBlock<A>;
      for_passes(CONVGRU_TILE_ROWS, [&](int64_t row, int64_t count) {
        outer_product_rows<CONVGRU_TILE_ROWS>(
            count, x.data + row * x.pixel_stride + i, x.pixel_stride, w.data + i * w.in_stride + channel,
            w.in_stride, channels, depth, sums + ((block - first_block) * pixels + row) * kBlock<A>);
      });
    }
  }
}

template <class T>
void pointwise(
    int64_t begin, int64_t end, int64_t pixels, int64_t channel_unit, const Input<T>& input,
    const Weights<T>& weights, int64_t narrow_from, const Epilogue<T>& epilogue) {
  using A = acc_t<T>;
  const int64_t blocks = (weights.out + kBlock<A> - 1) / kBlock<A>, unit = channel_unit / kBlock<A>;
  const int64_t first_block = begin * unit, end_block = end * unit < blocks ? end * unit : blocks;
  const int64_t size = (end_block - first_block) * pixels * kBlock<A>;
  A* sums = scratch<A>(size);
  for (int64_t i = 0; i < size; ++i) sums[i] = A(0);
  // Blocks of which some channels are narrow have zeros for the others, which are none of their outs.
  for (int s = 0; s < input.count; ++s) {
    const int64_t last = s == 0 || narrow_from == weights.out ? end_block
                         : (narrow_from + kBlock<A> - 1) / kBlock<A> < end_block
                             ? (narrow_from + kBlock<A> - 1) / kBlock<A>
                             : end_block;
    add_source(input.sources[s], weights.parts[s], pixels, first_block, last, weights.out, sums);
  }
  for (int64_t block = first_block; block < end_block; ++block) {
    const int64_t channel = block * kBlock<A>;
    direct_sums(
        0, pixels, sums + (block - first_block) * pixels * kBlock<A>, channel,
        weights.out - channel < kBlock<A> ? weights.out - channel : kBlock<A>, epilogue);
  }
}

}  // namespace

extern const Pointwise<float> kFloatPointwise = pointwise<float>;
extern const Pointwise<double> kDoublePointwise = pointwise<double>;
extern const Pointwise<bfloat16> kBFloat16Pointwise = pointwise<bfloat16>;
extern const Pointwise<float16> kFloat16Pointwise = pointwise<float16>;

}  // namespace convgru::cpu::CONVGRU_ISA
