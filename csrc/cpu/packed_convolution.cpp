#include "packed_convolution.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "gates.h"

namespace convgru::cpu {
namespace {

std::vector<int32_t> range(int64_t first, int64_t count) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), static_cast<int32_t>(first));
  return values;
}

// Tiles of the weight gradients' panels that a thread makes at a time.
constexpr int64_t kPanelTiles = 16;

// So many items of work, the i-th of the tiles [begin(i), begin(i+1)).
template <class T, class Extents, class F>
std::vector<Item> items_of_tiles(
    const ConvolutionKernels<T>& kernels, const Extents& extents, const Mode& mode, int64_t count,
    const F& begin) {
  const auto rows = [&](int64_t tile, int64_t tiles) {
    return kernels.rows_of_tiles(extents.batch, extents.height, extents.width, tile, tiles);
  };
  std::vector<Item> items;
  std::vector<int64_t> middles;
  const int64_t last = extents.tiles(kernels.scheme) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = begin(i), end = begin(i + 1);
    items.push_back({rows(first, end - first), 0});
    middles.push_back(rows(std::min((first + end) / 2, last), 1).begin);
  }
  const Grid grid{mode.not_finite.samples, extents.height, extents.width};
  divide(grid, middles, items);
  return items;
}

}  // namespace

template <class T>
PackedConvolution<T>::PackedConvolution(
    std::vector<Part> parts, int64_t in, int64_t out, int64_t channel_unit, ConvolutionShape shape,
    const Mode& mode)
    : parts_(std::move(parts)), shape_(shape), mode_(mode) {
  shape_.in = in;
  shape_.out = out;
  kernels_ = find_kernels<T>(
      choose_algorithm(shape_, mode.numerics, /*weight_gradient=*/false), shape.kernel_h, shape.kernel_w);
  channel_unit_ = std::max(channel_unit, kernels_->channel_block);
  if (reads_weights_in_place(shape_)) return;
  WeightMemory<T> memory[kMostSources] = {};
  for (size_t p = 0; p < parts_.size(); ++p) memory[p] = parts_[p].memory;
  packed_ = packed_weights(*kernels_, weights(), memory);
}

template <class T>
Weights<T> PackedConvolution<T>::weights() const {
  Weights<T> weights{
      {}, static_cast<int>(parts_.size()), shape_.out, shape_.in, shape_.kernel_h, shape_.kernel_w};
  for (size_t p = 0; p < parts_.size(); ++p) {
    weights.parts[p] = parts_[p].weights;
    weights.parts[p].outs = parts_[p].outs.data();
  }
  return weights;
}

template <class T>
Stage PackedConvolution<T>::stage(int64_t batch, const Input<T>& input, const Epilogue<T>& epilogue) const {
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Item> items;
  if (packed_ == nullptr) {
    const int64_t units = (shape_.out + channel_unit_ - 1) / channel_unit_;
    const int64_t pixels = batch * shape_.height * shape_.width;
    const int64_t parts = is_serial(pixels * shape_.in * shape_.out) ? 1 : std::min(units, threads);
    for (int64_t i = 0; i < parts; ++i) items.push_back({{0, batch * shape_.height}, i});
    return {std::move(items), [=, this](int64_t i, const Rows&) {
              pointwise_kernels<T>().convolve(
                  units * i / parts, units * (i + 1) / parts, pixels, channel_unit_, input, weights(),
                  epilogue);
            }};
  }
  ConvolutionShape shape = shape_;
  shape.batch = batch;
  const Work work = plan_work(kernels_->scheme, shape, sizeof(acc_t<T>), threads, channel_unit_);
  const int64_t tiles = work.tiles(kernels_->scheme), splits = work.channel_splits;
  const auto block = [&](int64_t i) { return std::min(i * work.tiles_per_block, tiles); };
  for (const Item& item :
       items_of_tiles(*kernels_, work, mode_, work.items(kernels_->scheme) / splits, block))
    for (int64_t split = 0; split < splits; ++split)
      items.push_back({item.rows, splits > 1 ? split * threads / splits : item.thread});
  return {std::move(items), [=, this](int64_t i, const Rows&) {
            kernels_->convolve(i, i + 1, work, input, shape_.out, packed_.get(), epilogue, mode_.not_finite);
          }};
}

template <class T>
auto PackedConvolution<T>::part_of(const WeightRows& rows, std::vector<int32_t> outs, int64_t first) -> Part {
  const Tensor& weight = rows.weight;
  const T* start = data<T>(weight);
  return {
      {start, weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3), nullptr, first,
       weight.size(1)},
      std::move(outs),
      {start + rows.first * weight.stride(0), rows.count * weight.stride(0)}};
}

template <class T>
PackedConvolution<T> PackedConvolution<T>::forward(
    const WeightRows& rows, const ConvolutionShape& extents, const Mode& mode) {
  return {
      {part_of(rows, range(rows.first, rows.count), 0)}, rows.weight.size(1), rows.count, 0, extents, mode};
}

template <class T>
PackedConvolution<T> PackedConvolution<T>::joined(
    const WeightRows& x, const WeightRows& h, const ConvolutionShape& extents, const Mode& mode) {
  const int64_t in = x.weight.size(1);
  return {
      {part_of(x, range(x.first, x.count), 0), part_of(h, range(h.first, h.count), in)},
      in + h.weight.size(1),
      x.count,
      0,
      extents,
      mode};
}

template <class T>
PackedConvolution<T> PackedConvolution<T>::cudnn(
    const Tensor& weight_hh, const ConvolutionShape& extents, const Mode& mode) {
  const int64_t K = weight_hh.size(1);
  std::vector<int32_t> outs(3 * K);
  for (int64_t channel = 0; channel < 3 * K; ++channel) {
    const CudnnChannel place = cudnn_channel(channel, K);
    outs[channel] = static_cast<int32_t>(place.gate * K + place.hidden);
  }
  return {{part_of({weight_hh, 0, 3 * K}, std::move(outs), 0)}, K, 3 * K, 3 * kCudnnGroup, extents, mode};
}

template <class T>
PackedConvolution<T> PackedConvolution<T>::transposed(
    const std::vector<WeightRows>& rows, const ConvolutionShape& extents, const Mode& mode) {
  std::vector<Part> parts;
  int64_t in = 0;
  for (const WeightRows& some : rows) {
    Part part = part_of(some, range(0, some.weight.size(1)), in);
    WeightPart<T>& w = part.weights;
    w.data =
        part.memory.data + (extents.kernel_h - 1) * w.row_stride + (extents.kernel_w - 1) * w.column_stride;
    std::swap(w.out_stride, w.in_stride);
    w.row_stride = -w.row_stride;
    w.column_stride = -w.column_stride;
    w.channels = some.count;
    parts.push_back(std::move(part));
    in += some.count;
  }
  const int64_t out = rows[0].weight.size(1);
  return {std::move(parts), in, out, 0, extents, mode};
}

template <class T>
WeightGradients<T>::WeightGradients(
    const std::vector<int64_t>& channels, int64_t out, const std::vector<Term>& terms,
    const ConvolutionShape& extents, bool once, const Mode& mode)
    : mode_(mode) {
  ConvolutionShape shape = extents;
  std::vector<int64_t> first{0};
  for (const int64_t count : channels) first.push_back(first.back() + count);
  shape.in = first.back();
  shape.out = out;
  kernels_ = find_kernels<T>(
      choose_algorithm(shape, mode.numerics, /*weight_gradient=*/true), shape.kernel_h, shape.kernel_w);
  const Scheme& scheme = kernels_->scheme;
  work_ = {shape.batch,
           shape.height,
           shape.width,
           shape.kernel_h,
           shape.kernel_w,
           shape.in,
           out,
           1,
           1,
           false,
           {},
           0};
  for (const int64_t count : channels) work_.ragged |= count % (64 / sizeof(A)) != 0;
  for (const Term& term : terms) {
    term_sources_.push_back(term.source);
    work_.terms[work_.term_count++] = {
        first[term.source], channels[term.source], term.first_out, term.out, 1};
  }
  in_place_ = once && reads_weights_in_place(shape);
  if (in_place_) return;
  plan_gradient(scheme, sizeof(A), kernels_->channel_block, torch::stable::get_num_threads(), work_);
  for (int t = 0; t < work_.term_count; ++t) sums_[t] = Buffer<A>(work_.slices * sums_size(t));
}

template <class T>
WeightGradients<T>::Panels::Panels(const ConvolutionKernels<T>& kernels, const GradientWork& work) {
  const int64_t positions = kernels.scheme.positions(), tiles = work.tiles_per_chunk;
  x = Buffer<A>(positions * position_stride<A>(tiles * work.template x_stride<A>(kernels.scheme)));
  grad = Buffer<A>(positions * position_stride<A>(kernels.blocks(work.out) * tiles * kernels.channel_block));
}

template <class T>
int64_t WeightGradients<T>::sums_size(int term) const {
  const Scheme& scheme = kernels_->scheme;
  return gradient_sums(scheme, work_.terms[term], kernels_->channel_block, work_.taps(scheme));
}

// Items of the products of a chunk.
template <class T>
int64_t WeightGradients<T>::products() const {
  const int64_t block = kernels_->channel_block;
  int64_t items = 0;
  for (const GradientTerm* term = work_.terms; term != work_.terms + work_.term_count; ++term)
    items += kernels_->scheme.positions() * blocks_of(*term, block).count * term->row_splits;
  return items;
}

// The first tile of a slice.
template <class T>
int64_t WeightGradients<T>::slice_begin(const Images& images, int64_t slice) const {
  return images.work.tiles(kernels_->scheme) * slice / work_.slices;
}

// Calls f(chunk) for the chunks of a slice.
template <class T>
template <class F>
void WeightGradients<T>::for_chunks(const Images& images, int64_t slice, const F& f) const {
  const int64_t begin = slice_begin(images, slice), end = slice_begin(images, slice + 1);
  Chunk chunk{};
  for (int t = 0; t < work_.term_count; ++t) chunk.sums[t] = sums_[t].get() + slice * sums_size(t);
  for (chunk.first = begin; chunk.first < end; chunk.first += work_.tiles_per_chunk) {
    chunk.count = std::min(work_.tiles_per_chunk, end - chunk.first);
    chunk.accumulate = started_ || chunk.first > begin;
    f(chunk);
  }
}

template <class T>
void WeightGradients<T>::add(int64_t batch, const std::vector<Source<T>>& sources, const Source<T>& grad) {
  if (in_place_) {
    sources_ = sources;
    grad_ = grad;
    return;
  }
  Images images{work_, {{}, static_cast<int>(sources.size())}, grad};
  images.work.batch = batch;
  std::copy(sources.begin(), sources.end(), images.x.sources);
  const int64_t threads = torch::stable::get_num_threads(), slices = work_.slices;
  if (slices > 1 && slices >= threads) {
    const auto begin = [&](int64_t slice) { return slice_begin(images, slice); };
    run_stage({items_of_tiles(*kernels_, images.work, mode_, slices, begin), [&](int64_t slice, const Rows&) {
                 add_by_one(images, slice);
               }});
  } else {
    const Panels panels(*kernels_, work_);
    for (int64_t slice = 0; slice < slices; ++slice)
      for_chunks(images, slice, [&](const Chunk& chunk) { add_by_all(images, chunk, panels); });
  }
  started_ = true;
}

// A slice by the calling thread, which reads nothing that another has written.
template <class T>
void WeightGradients<T>::add_by_one(const Images& images, int64_t slice) const {
  const Panels panels(*kernels_, work_);
  for_chunks(images, slice, [&](const Chunk& chunk) {
    kernels_->gradient_panels(
        0, chunk.count, images.work, chunk.first, images.x, images.grad, panels.x.get(), panels.grad.get());
    kernels_->gradient_products(
        0, products(), images.work, chunk.first, chunk.count, chunk.accumulate, panels.x.get(),
        panels.grad.get(), chunk.sums);
  });
}

// A chunk by all threads: first the panels, then the products of all positions.
template <class T>
void WeightGradients<T>::add_by_all(const Images& images, const Chunk& chunk, const Panels& panels) const {
  const auto begin = [&](int64_t i) { return chunk.first + std::min(i * kPanelTiles, chunk.count); };
  std::vector<Item> items =
      items_of_tiles(*kernels_, images.work, mode_, (chunk.count + kPanelTiles - 1) / kPanelTiles, begin);
  run_stage({std::move(items), [&](int64_t item, const Rows&) {
               kernels_->gradient_panels(
                   item * kPanelTiles, std::min((item + 1) * kPanelTiles, chunk.count), images.work,
                   chunk.first, images.x, images.grad, panels.x.get(), panels.grad.get());
             }});
  torch::stable::parallel_for(0, products(), 1, [&](int64_t begin, int64_t end) {
    kernels_->gradient_products(
        begin, end, images.work, chunk.first, chunk.count, chunk.accumulate, panels.x.get(),
        panels.grad.get(), chunk.sums);
  });
}

template <class T>
void WeightGradients<T>::finish(int term, T* gradient) const {
  const GradientTerm& which = work_.terms[term];
  if (in_place_) {
    const PointwiseKernels<T>& kernels = pointwise_kernels<T>();
    const int64_t pixels = work_.batch * work_.height * work_.width;
    const int64_t units = (which.out + kernels.gradient_unit - 1) / kernels.gradient_unit;
    const Source<T> grad{grad_.data + which.first_out, which.out, grad_.pixel_stride};
    const int64_t grain = is_serial(pixels * which.in * which.out) ? units : 1;
    torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
      kernels.gradient(begin, end, pixels, sources_[term_sources_[term]], grad, gradient);
    });
    return;
  }
  A* const sums = sums_[term].get();
  if (work_.slices > 1) {
    const int64_t size = sums_size(term);
    constexpr int64_t kColumns = 4096;  // that a thread takes at a time
    torch::stable::parallel_for(0, (size + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      gate_kernels<A>().sum_rows(
          begin * kColumns, std::min(end * kColumns, size), work_.slices - 1, size, sums + size, sums);
    });
  }
  const int64_t blocks = blocks_of(which, kernels_->channel_block).count;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    kernels_->gradient_finish(begin, end, work_, which, sums, gradient, mode_.not_finite);
  });
}

template <class T>
const ConvolutionKernels<T>* find_kernels(Algorithm algorithm, int64_t kernel_h, int64_t kernel_w) {
  const ConvolutionKernelSet<T>& set = convolution_kernels<T>();
  for (int i = 0; i < set.winograd_count; ++i) {
    const Scheme& scheme = set.winograd[i].scheme;
    if (scheme.algorithm == algorithm && scheme.kernel_h == kernel_h && scheme.kernel_w == kernel_w)
      return &set.winograd[i];
  }
  return &set.direct;
}

#define CONVGRU_INSTANTIATE(T)         \
  template class PackedConvolution<T>; \
  template class WeightGradients<T>;   \
  template const ConvolutionKernels<T>* find_kernels(Algorithm, int64_t, int64_t);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cpu
