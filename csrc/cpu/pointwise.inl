// Convolutions by 1x1 kernels of few pixels: matrix products that read the weights where they lie, once. To
// pack them would take longer than to use them. In the namespace CONVGRU_ISA.
//
// Products has the products themselves, by templates of the number of rows and outputs:
//   dot<rows, outs>   y[row * kBlock + o] += sum over i of x[row][i] * w[o][i]
//   outer<rows>       c[row * kBlock + k] += sum over i of x[row][i] * w[i][k], for k < channels <= kBlock
//   gradient<rows>    g[row][i] = sum over the pixels of left[pixel][row] * x[pixel][i], i < channels
//                     <= kBlock
// dot and outer read x as copy_row copies it, elements of type X; gradient reads left and x as pack_rows and
// pack_columns lay them out, in the memory of (pixels + 1) rows of kRows and kBlock elements.
#pragma once
#include "blocks.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// Of the weights of an output, so that those of the outputs that are multiplied together stay in the
// first-level cache while they meet one pixel after the other.
constexpr int64_t kDotBytes = 4096;

// Calls f(first, count) for the pixels, at most `most` at a time and as even as possible.
template <class F>
void for_passes(int64_t pixels, int64_t most, const F& f) {
  const int64_t passes = (pixels + most - 1) / most;
  for (int64_t pass = 0; pass < passes; ++pass)
    f(pixels * pass / passes, pixels * (pass + 1) / passes - pixels * pass / passes);
}

// f(constant of rows), for 1 to kMost rows.
template <int kMost, class F>
void with_rows(int64_t rows, const F& f) {
  if constexpr (kMost > 0) {
    if (rows == kMost)
      f(std::integral_constant<int, kMost>{});
    else
      with_rows<kMost - 1>(rows, f);
  }
}

// Adds what one source gives to the sums [blocks][pixels][kBlock] of the blocks [first_block, end_block).
template <class Products, class T>
void add_source(
    const Source<typename Products::X>& x, const WeightPart<T>& w, int64_t pixels, int64_t first_block,
    int64_t end_block, int64_t out, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int kOuts = Products::kDotOuts;
  if (w.in_stride == 1) {
    for (int64_t i = 0; i < x.channels; i += kDotBytes / sizeof(T)) {
      const int64_t left = x.channels - i, most = kDotBytes / sizeof(T), depth = left < most ? left : most;
      for (int64_t channel = first_block * kBlock<A>; channel < end_block * kBlock<A> && channel < out;) {
        const T* rows[kOuts];
        int outs = 0;
        for (; outs < kOuts && channel + outs < out && channel % kBlock<A> + outs < kBlock<A>; ++outs)
          rows[outs] = w.data + w.outs[channel + outs] * w.out_stride + i;
        A* y = sums + (channel / kBlock<A> - first_block) * pixels * kBlock<A> + channel % kBlock<A>;
        for_passes(pixels, Products::kDotRows, [&](int64_t row, int64_t count) {
          const auto* x_rows = x.data + row * x.pixel_stride + i;
          A* y_rows = y + row * kBlock<A>;
          with_rows<Products::kDotRows>(count, [&](auto kRows) {
            if (outs == kOuts)
              Products::template dot<kRows, kOuts>(x_rows, x.pixel_stride, rows, depth, y_rows);
            else
              for (int o = 0; o < outs; ++o)
                Products::template dot<kRows, 1>(x_rows, x.pixel_stride, rows + o, depth, y_rows + o);
          });
        });
        channel += outs;
      }
    }
    return;
  }
  for (int64_t i = 0; i < x.channels; i += kChain) {
    const int64_t depth = x.channels - i < kChain ? x.channels - i : kChain;
    for (int64_t block = first_block; block < end_block; ++block) {
      const int64_t channel = block * kBlock<A>;
      const int64_t channels = out - channel < kBlock<A> ? out - channel : kBlock<A>;
      for_passes(pixels, Products::kRows, [&](int64_t row, int64_t count) {
        with_rows<Products::kRows>(count, [&](auto kRows) {
          Products::template outer<kRows>(
              x.data + row * x.pixel_stride + i, x.pixel_stride, w.data + i * w.in_stride + channel,
              w.in_stride, channels, depth, sums + ((block - first_block) * pixels + row) * kBlock<A>);
        });
      });
    }
  }
}

template <class Products, class T>
void pointwise(
    int64_t begin, int64_t end, int64_t pixels, int64_t channel_unit, const Input<T>& input,
    const Weights<T>& weights, const Epilogue<T>& epilogue) {
  using A = acc_t<T>;
  using X = typename Products::X;
  const int64_t blocks = (weights.out + kBlock<A> - 1) / kBlock<A>, unit = channel_unit / kBlock<A>;
  const int64_t first_block = begin * unit, end_block = end * unit < blocks ? end * unit : blocks;
  const int64_t size = (end_block - first_block) * pixels * kBlock<A>;
  int64_t most_channels = 0;
  for (int s = 0; s < input.count; ++s)
    most_channels = most_channels < input.sources[s].channels ? input.sources[s].channels : most_channels;
  const int64_t stride = position_stride<X>(most_channels);  // rows are read together
  A* sums = scratch<A>(size + (pixels * stride * sizeof(X) + sizeof(A) - 1) / sizeof(A));
  X* panel = reinterpret_cast<X*>(sums + size);
  for (int64_t i = 0; i < size; ++i) sums[i] = A(0);
  for (int s = 0; s < input.count; ++s) {
    const Source<T>& x = input.sources[s];
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      Products::copy_row(x.data + pixel * x.pixel_stride, x.channels, panel + pixel * stride);
    add_source<Products, T>(
        {panel, x.channels, stride}, weights.parts[s], pixels, first_block, end_block, weights.out, sums);
  }
  for (int64_t block = first_block; block < end_block; ++block) {
    const int64_t channel = block * kBlock<A>;
    direct_sums(
        0, pixels, sums + (block - first_block) * pixels * kBlock<A>, channel,
        weights.out - channel < kBlock<A> ? weights.out - channel : kBlock<A>, epilogue);
  }
}

template <class Products, class T>
void pointwise_gradient(
    int64_t begin, int64_t end, int64_t pixels, const Source<T>& x, const Source<T>& grad, T* gradient) {
  using A = acc_t<T>;
  constexpr int64_t kMost = Products::kRows;
  // Blocks of columns, each of them without gaps.
  const int64_t blocks = (x.channels + kBlock<A> - 1) / kBlock<A>, block_size = (pixels + 1) * kBlock<A>;
  A* panel = scratch<A>(blocks * block_size + (pixels + 1) * kMost);
  A* left = panel + blocks * block_size;
  const auto columns = [&](int64_t block) {
    const int64_t some = x.channels - block * kBlock<A>;
    return some < kBlock<A> ? some : kBlock<A>;
  };
  for (int64_t block = 0; block < blocks; ++block)
    Products::pack_columns(
        x.data + block * kBlock<A>, x.pixel_stride, pixels, columns(block), panel + block * block_size);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t out = unit * kMost, rows = grad.channels - out < kMost ? grad.channels - out : kMost;
    Products::pack_rows(grad.data + out, grad.pixel_stride, pixels, rows, left);
    with_rows<kMost>(rows, [&](auto kRows) {
      for (int64_t block = 0; block < blocks; ++block)
        Products::template gradient<kRows>(
            pixels, left, panel + block * block_size, columns(block),
            gradient + out * x.channels + block * kBlock<A>, x.channels);
    });
  }
}

template <class Products, class T>
constexpr PointwiseKernels<T> kPointwise{
    pointwise<Products, T>, pointwise_gradient<Products, T>, Products::kRows};

}  // namespace
}  // namespace convgru::cpu::CONVGRU_ISA
