#include "convolution.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "gates.h"
#include "winograd.h"
#include "winograd_weights.h"

namespace convgru::cpu {
namespace {

namespace stable = torch::stable;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

constexpr std::array<int64_t, 2> kOne{1, 1}, kZero{0, 0};

// Tiles that are transformed together, so that they stay in the second-level cache, for up to 128 channels
// and for more. A one-dimensional tile has a quarter of the positions: twice as many leave room for the
// products.
constexpr int64_t kManyTiles = 56;
constexpr int64_t kFewTiles = 28;
// With fewer tiles the output channels are divided among the threads instead.
constexpr int64_t kSplitTiles = 14;

// Tiles whose products are summed before they are added to the sums of a weight gradient.
constexpr int64_t kChunkTiles = 128;

// Whether Winograd's algorithm is faster than the library: with few tiles its larger weights, which are read
// once, cost more than its fewer multiplications save; in an image that fills its tiles badly there are
// hardly fewer.
bool winograd_pays(const WinogradScheme& scheme, int64_t batch, int64_t height, int64_t width) {
  const int64_t tiles = batch * scheme.tiles_h(height) * scheme.tiles_w(width);
  const int64_t direct = batch * height * width * scheme.kernel_h * scheme.kernel_w;
  return tiles >= (scheme.one_dimensional() ? 4 : 16) && 4 * tiles * scheme.positions() <= 3 * direct;
}

// A (rows, columns) view of dense channels-last images, or of slices of them.
Tensor as_matrix(const Tensor& images) {
  const int64_t rows = images.size(0) * images.size(2) * images.size(3);
  const int64_t row_stride = images.size(3) > 1   ? images.stride(3)
                             : images.size(2) > 1 ? images.stride(2)
                                                  : images.stride(0);
  return stable::from_blob(
      images.data_ptr(), {rows, images.size(1)}, {row_stride, 1}, images.device(), images.scalar_type());
}

Tensor transposed(const Tensor& matrix) {
  return stable::transpose(matrix, 0, 1);
}

// Dense (B,H,W,channels) memory as (B,channels,H,W).
Tensor channels_first_view(const Tensor& memory) {
  return stable::transpose(stable::transpose(memory, 2, 3), 1, 2);
}

// Whether a weight (O,I,kh,kw) fills its memory without gaps, in whatever order.
bool is_dense(const Tensor& weight) {
  const int64_t in = weight.size(1), kernel_h = weight.size(2), kernel_w = weight.size(3);
  return weight.is_contiguous() || (weight.stride(1) == 1 && (weight.stride(3) == in || kernel_w == 1) &&
                                    (weight.stride(2) == kernel_w * in || kernel_h == 1) &&
                                    weight.stride(0) == kernel_h * kernel_w * in);
}

// The convolution of x (B,I,H,W) by transformed weights, to `out` channels.
Tensor winograd(
    const WinogradKernels& kernels, const Tensor& x, const std::vector<float>& transformed, int64_t out,
    const std::optional<Tensor>& bias) {
  WinogradConvolution p{};
  p.scheme = kernels.scheme;
  p.batch = x.size(0);
  p.height = x.size(2);
  p.width = x.size(3);
  p.in = x.size(1);
  p.out = out;
  const int64_t threads = stable::get_num_threads();
  const int64_t most = (p.in <= 128 ? kManyTiles : kFewTiles) * (p.scheme.one_dimensional() ? 2 : 1);
  // As many blocks for every thread, and then as large as the cache allows.
  int64_t blocks = (p.tiles() + most - 1) / most;
  blocks = (blocks + threads - 1) / threads * threads;
  p.tiles_per_block = (p.tiles() + blocks - 1) / blocks;
  p.channel_splits = 1;
  if (p.tiles_per_block < kSplitTiles) {
    p.tiles_per_block = std::min(most, p.tiles());
    p.channel_splits = std::min(threads, p.out / kWinogradChannels);
  }
  const Tensor y = stable::new_empty(x, {p.batch, p.height, p.width, p.out});
  stable::parallel_for(0, p.work_items(), 1, [&](int64_t begin, int64_t end) {
    kernels.convolve(
        begin, end, p, static_cast<const float*>(x.data_ptr()), transformed.data(),
        bias.has_value() ? static_cast<const float*>(bias->data_ptr()) : nullptr,
        static_cast<float*>(y.data_ptr()));
  });
  return channels_first_view(y);
}

// The gradient of a weight (O,I,kh,kw): x (B,I,H,W), grad (B,O,H,W).
Tensor winograd_grad_weight(const WinogradKernels& kernels, const Tensor& x, const Tensor& grad) {
  WinogradWeightGradient p{};
  p.scheme = kernels.scheme;
  p.batch = x.size(0);
  p.height = x.size(2);
  p.width = x.size(3);
  p.in = x.size(1);
  p.out = grad.size(1);
  p.grad_pixel_stride = as_matrix(grad).stride(0);
  const int64_t chunks = (p.tiles() + kChunkTiles - 1) / kChunkTiles;
  p.tiles_per_chunk = (p.tiles() + chunks - 1) / chunks;
  const int64_t blocks = kernels.channel_blocks(p.out), positions = p.scheme.positions();
  const auto buffer = [&](int64_t count) { return stable::new_empty(x, {count}); };
  const Tensor x_transformed = buffer(positions * p.tiles_per_chunk * winograd_row_stride(p.in));
  const Tensor grad_transformed = buffer(positions * blocks * p.tiles_per_chunk * kernels.channel_block);
  const Tensor sums = buffer(kernels.weights_size(p.in, p.out));
  const Tensor weights = stable::new_empty(x, {p.out, p.in, p.scheme.kernel_h, p.scheme.kernel_w});
  const auto data = [](const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); };
  for (int64_t first = 0; first < p.tiles(); first += p.tiles_per_chunk) {
    const int64_t count = std::min(p.tiles_per_chunk, p.tiles() - first);
    stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      kernels.transform_for_gradient(
          begin, end, p, first, data(x), data(grad), data(x_transformed), data(grad_transformed));
    });
    stable::parallel_for(0, positions * blocks, 1, [&](int64_t begin, int64_t end) {
      kernels.multiply_for_gradient(
          begin, end, p, count, first > 0, data(x_transformed), data(grad_transformed), data(sums));
    });
  }
  stable::parallel_for(0, 2 * blocks, 1, [&](int64_t begin, int64_t end) {
    kernels.finish_gradient(begin, end, p, data(sums), data(weights));
  });
  return weights;
}

// The gradient of a weight (O,I,kh,kw), one matrix product a tap. With images padded by zeros a tap is a
// shift of all pixels at once, so its product runs over the whole batch. For kernels 1xk and kx1 the
// library's own is slower.
Tensor shifted_products(const Tensor& x, const Tensor& grad, int64_t kernel_h, int64_t kernel_w) {
  const int64_t in = x.size(1), out = grad.size(1), height = kernel_h / 2, width = kernel_w / 2;
  const auto padded = [](const Tensor& images, std::vector<int64_t> padding) {
    const Tensor memory = stable::transpose(stable::transpose(images, 1, 2), 2, 3);
    return stable::contiguous(stable::pad(memory, padding));
  };
  const Tensor x_padded = padded(x, {0, 0, width, width, height, height});
  const Tensor grad_padded = padded(grad, {0, 0, 0, 2 * width, 0, 2 * height});
  const int64_t rows = x_padded.numel() / in, row_width = x_padded.size(2);
  Tensor x_rows = stable::view(x_padded, {rows, in}), grad_rows = stable::view(grad_padded, {rows, out});
  const Tensor taps = stable::new_empty(x, {kernel_h * kernel_w, out, in});
  for (int64_t tap = 0; tap < kernel_h * kernel_w; ++tap) {
    const int64_t shift = tap / kernel_w * row_width + tap % kernel_w;
    const Tensor product = stable::select(taps, 0, tap);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(
        product.get(), transposed(stable::narrow(grad_rows, 0, 0, rows - shift)).get(),
        stable::narrow(x_rows, 0, shift, rows - shift).get()));
  }
  // Taps become the last axes.
  return stable::reshape(
      stable::contiguous(transposed(stable::view(taps, {kernel_h * kernel_w, out * in}))),
      {out, in, kernel_h, kernel_w});
}

// PyTorch's own gradients of input and weight; the one that is not asked for is undefined.
std::pair<Tensor, Tensor> library_backward(
    const Tensor& x, const Tensor& grad, const Tensor& weight, bool wants_input, bool wants_weight) {
  const std::array<int64_t, 2> padding{weight.size(2) / 2, weight.size(3) / 2};
  const std::array<int32_t, 3> mask{wants_input, wants_weight, false};
  AtenTensorHandle grad_input = nullptr, grad_weight = nullptr, grad_bias = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      grad.get(), x.get(), weight.get(), /*bias_sizes=*/nullptr, 0, kOne.data(), 2, padding.data(), 2,
      kOne.data(), 2,
      /*transposed=*/0, kZero.data(), 2, /*groups=*/1, mask.data(), 3, &grad_input, &grad_weight,
      &grad_bias));
  const Tensor unused(grad_bias);
  return {Tensor(grad_input), Tensor(grad_weight)};
}

}  // namespace

Tensor images_view(
    const void* data, const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
    int64_t pixel_stride) {
  return stable::from_blob(
      const_cast<void*>(data), {batch, channels, height, width},
      {height * width * pixel_stride, 1, width * pixel_stride, pixel_stride}, like.device(),
      like.scalar_type());
}

Convolution::Convolution(const Tensor& weight, bool fast)
    : weight_(weight),
      out_(weight.size(0)),
      in_(weight.size(1)),
      kernel_h_(weight.size(2)),
      kernel_w_(weight.size(3)),
      winograd_(
          fast && weight.scalar_type() == ScalarType::Float && in_ % kWinogradChannels == 0 &&
                  out_ % kWinogradChannels == 0 && is_dense(weight)
              ? winograd_kernels(kernel_h_, kernel_w_)
              : nullptr) {}

Convolution::Algorithm Convolution::choose(int64_t batch, int64_t height, int64_t width) const {
  if (kernel_h_ == 1 && kernel_w_ == 1) return Algorithm::kMatrixProduct;
  if (winograd_ != nullptr && winograd_pays(winograd_->scheme, batch, height, width))
    return Algorithm::kWinograd;
  return Algorithm::kLibrary;
}

// The weights as the library takes them without reordering them at every call.
const Tensor& Convolution::library_weight() const {
  if (!library_weight_.has_value()) library_weight_ = stable::contiguous(weight_, MemoryFormat::ChannelsLast);
  return *library_weight_;
}

const std::vector<float>& Convolution::winograd_weight(bool transposed) const {
  auto& weight = winograd_weight_[transposed];
  if (weight == nullptr) {
    const int64_t strides[4] = {weight_.stride(0), weight_.stride(1), weight_.stride(2), weight_.stride(3)};
    weight = winograd_weights(
        *winograd_, static_cast<const float*>(weight_.data_ptr()), out_, in_, strides, transposed);
  }
  return *weight;
}

Tensor Convolution::forward(const Tensor& x, const std::optional<Tensor>& bias) const {
  const int64_t batch = x.size(0), height = x.size(2), width = x.size(3);
  switch (choose(batch, height, width)) {
    case Algorithm::kMatrixProduct: {
      const Tensor y = stable::new_empty(x, {batch, height, width, out_});
      const Tensor product = stable::view(y, {batch * height * width, out_});
      const Tensor rows = as_matrix(x), matrix = transposed(stable::reshape(weight_, {out_, in_}));
      if (bias.has_value()) {
        TORCH_ERROR_CODE_CHECK(
            aoti_torch_cpu_addmm_out(product.get(), bias->get(), rows.get(), matrix.get(), 1.0, 1.0));
      } else {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(product.get(), rows.get(), matrix.get()));
      }
      return channels_first_view(y);
    }
    case Algorithm::kWinograd:
      return winograd(*winograd_, x, winograd_weight(false), out_, bias);
    default: {
      AtenTensorHandle bias_handle = bias.has_value() ? bias->get() : nullptr;
      AtenTensorHandle result = nullptr;
      const std::array<int64_t, 2> padding{kernel_h_ / 2, kernel_w_ / 2};
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(
          x.get(), library_weight().get(), bias.has_value() ? &bias_handle : nullptr, kOne.data(), 2,
          padding.data(), 2, kOne.data(), 2, /*transposed=*/0, kZero.data(), 2, /*groups=*/1, &result));
      return stable::contiguous(Tensor(result), MemoryFormat::ChannelsLast);
    }
  }
}

Tensor Convolution::grad_input(const Tensor& x, const Tensor& grad) const {
  const int64_t batch = grad.size(0), height = grad.size(2), width = grad.size(3);
  switch (choose(batch, height, width)) {
    case Algorithm::kMatrixProduct: {
      const Tensor y = stable::new_empty(grad, {batch, height, width, in_});
      const Tensor product = stable::view(y, {batch * height * width, in_});
      const Tensor matrix = stable::reshape(weight_, {out_, in_});
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(product.get(), as_matrix(grad).get(), matrix.get()));
      return channels_first_view(y);
    }
    case Algorithm::kWinograd:
      return winograd(*winograd_, grad, winograd_weight(true), in_, std::nullopt);
    default: {
      const auto gradients = library_backward(x, grad, library_weight(), true, false);
      return stable::contiguous(gradients.first, MemoryFormat::ChannelsLast);
    }
  }
}

Tensor Convolution::grad_weight(const Tensor& x, const Tensor& grad, int64_t images_per_step) const {
  if (kernel_h_ == 1 && kernel_w_ == 1) {
    const Tensor product = stable::new_empty(weight_, {out_, in_});
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_mm_out(product.get(), transposed(as_matrix(grad)).get(), as_matrix(x).get()));
    return stable::view(product, {out_, in_, 1, 1});
  }
  if (choose(x.size(0), x.size(2), x.size(3)) == Algorithm::kWinograd)
    return winograd_grad_weight(*winograd_, x, grad);
  if (kernel_h_ == 1 || kernel_w_ == 1) return shifted_products(x, grad, kernel_h_, kernel_w_);
  const auto library = [&](const Tensor& images, const Tensor& gradients) {
    return stable::contiguous(library_backward(images, gradients, library_weight(), false, true).second);
  };
  // In fp32 the library's one long sum over all steps can be ten times less accurate than the sum of the
  // steps' sums.
  if (weight_.scalar_type() != ScalarType::Float || x.size(0) <= images_per_step) return library(x, grad);
  const Tensor sum = stable::new_zeros(weight_, {out_, in_, kernel_h_, kernel_w_});
  for (int64_t first = 0; first < x.size(0); first += images_per_step) {
    const auto step = [&](const Tensor& images) {
      return stable::narrow(const_cast<Tensor&>(images), 0, first, images_per_step);
    };
    const Tensor part = library(step(x), step(grad));
    gate_kernels<float>().add(
        0, 1, sum.numel(), static_cast<float*>(sum.data_ptr()), static_cast<const float*>(part.data_ptr()), 1,
        0, 0);
  }
  return sum;
}

}  // namespace convgru::cpu
