// The operators of csrc/ops.cpp on the CPU: checks, memory, the loop over time. Elementwise work is in
// gates.h, convolutions in convolution.h. Inside, everything is channels last: a buffer of the sequence is
// (T,N,H,W,channels).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "convolution.h"
#include "gates.h"

namespace convgru::cpu {
namespace {

namespace stable = torch::stable;
using torch::headeronly::ScalarType;
using Optional = std::optional<Tensor>;
using torch::headeronly::IntHeaderOnlyArrayRef;

// What one call is about. T time steps, N batch, C input channels, K hidden channels, H x W pixels.
struct Problem {
  int64_t T, N, K, H, W;
  bool cudnn, reverse;
  bool fast;               // Winograd's algorithm is allowed
  const int64_t* lengths;  // (N,) or nullptr

  int64_t pixels() const { return H * W; }
  int64_t rows() const { return N * H * W; }
  int64_t all_rows() const { return T * N * H * W; }
  int64_t images() const { return T * N; }
  int64_t gates_kept() const { return cudnn ? 4 : 3; }
  // The t of the i-th step in the order in which the recurrence visits them.
  int64_t time(int64_t i) const { return reverse ? T - 1 - i : i; }
  Valid valid(int64_t t) const { return {lengths, t, pixels()}; }
  Valid all_valid() const { return {nullptr, 0, 1}; }
  // The rows of valid(t) where a step is the first that its sample sees.
  bool starts(int64_t t, int64_t n) const {
    if (!reverse) return t == 0;
    return lengths == nullptr ? t == T - 1 : t == lengths[n] - 1;
  }
};

Problem describe(
    const Optional& input, const Optional& hx, const Optional& weight_ih, const Tensor& weight_hh,
    const Optional& gate_bias, const Optional& lengths, const std::string& variant, bool reverse, bool fast) {
  STD_TORCH_CHECK(
      variant == "gru-rcn" || variant == "cudnn", "variant: expected 'gru-rcn' or 'cudnn', got ", variant);
  STD_TORCH_CHECK(
      input.has_value() || gate_bias.has_value(), "input: expected a Tensor if there is no gate_bias");
  STD_TORCH_CHECK(input.has_value() == weight_ih.has_value(), "weight_ih: expected together with input");
  const Tensor& sequence = input.has_value() ? *input : *gate_bias;
  STD_TORCH_CHECK(sequence.dim() == 5, "input: expected 5 dimensions (T,N,C,H,W), got ", sequence.dim());
  STD_TORCH_CHECK(
      weight_hh.dim() == 4, "weight_hh: expected (3K,K,kh,kw), got ", weight_hh.dim(), " dimensions");
  const Tensor& images = input.has_value() || !hx.has_value() ? sequence : *hx;
  Problem p{};
  p.T = sequence.size(0);
  p.N = sequence.size(1);
  p.K = weight_hh.size(1);
  p.H = images.size(images.dim() - 2);
  p.W = images.size(images.dim() - 1);
  p.cudnn = variant == "cudnn";
  p.reverse = reverse;
  p.fast = fast;
  STD_TORCH_CHECK(
      weight_hh.size(0) == 3 * p.K, "weight_hh: expected ", 3 * p.K, " outputs, got ", weight_hh.size(0));
  if (input.has_value()) {
    STD_TORCH_CHECK(
        weight_ih->dim() == 4 && weight_ih->size(0) == 3 * p.K && weight_ih->size(1) == input->size(2),
        "weight_ih: expected (", 3 * p.K, ",", input->size(2), ",kh,kw)");
  }
  if (hx.has_value()) {
    STD_TORCH_CHECK(
        hx->dim() == 4 && hx->size(0) == p.N && hx->size(1) == p.K && hx->size(2) == p.H &&
            hx->size(3) == p.W,
        "hx: expected (", p.N, ",", p.K, ",", p.H, ",", p.W, ")");
  }
  if (gate_bias.has_value()) {
    const bool full = gate_bias->dim() == 5 && gate_bias->size(3) == p.H && gate_bias->size(4) == p.W;
    const bool vector = gate_bias->dim() == 5 && gate_bias->size(3) == 1 && gate_bias->size(4) == 1;
    STD_TORCH_CHECK(
        (full || vector) && gate_bias->size(0) == p.T && gate_bias->size(1) == p.N &&
            gate_bias->size(2) == 3 * p.K,
        "gate_bias: expected (", p.T, ",", p.N, ",", 3 * p.K, ",", p.H, ",", p.W, ") or 1x1 pixels");
  }
  if (lengths.has_value()) {
    STD_TORCH_CHECK(
        lengths->dim() == 1 && lengths->size(0) == p.N && lengths->scalar_type() == ScalarType::Long,
        "lengths: expected ", p.N, " 64-bit integers");
    p.lengths = static_cast<const int64_t*>(lengths->data_ptr());
  }
  return p;
}

void check_same(const char* name, const Optional& tensor, const Tensor& weight) {
  if (!tensor.has_value()) return;
  STD_TORCH_CHECK(tensor->is_cpu(), name, ": expected a CPU tensor");
  STD_TORCH_CHECK(tensor->scalar_type() == weight.scalar_type(), name, ": expected the dtype of weight_hh");
}

// Runs f(begin, end) on [0, rows) in parallel; width elements a row. A thread gets at least 16k elements:
// less is not worth waking it.
template <class F>
void parallel_rows(int64_t rows, int64_t width, const F& f) {
  stable::parallel_for(0, rows, std::max<int64_t>(1, (16 << 10) / std::max<int64_t>(1, width)), f);
}

// The same test as _is_channels_last in convgru_fused/ops.py.
bool is_channels_last(const Tensor& images) {
  return images.stride(images.dim() - 3) == 1;
}

// Strides that a dense channels-last (...,C,H,W) has, up to axes of size 1.
bool is_dense_channels_last(const Tensor& images) {
  const int64_t dim = images.dim();
  int64_t expected = 1;
  std::vector<int64_t> order{dim - 3, dim - 1, dim - 2};
  for (int64_t axis = dim - 4; axis >= 0; --axis) order.push_back(axis);
  for (const int64_t axis : order) {
    if (images.size(axis) != 1 && images.stride(axis) != expected) return false;
    expected *= images.size(axis);
  }
  return true;
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
const T* data(const Optional& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

// (...,C,H,W) with the memory of a dense (...,H,W,C).
Tensor channels_first_view(const Tensor& memory) {
  const int64_t dim = memory.dim();
  return stable::transpose(stable::transpose(memory, dim - 2, dim - 1), dim - 3, dim - 2);
}

std::vector<int64_t> sizes(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

std::vector<int64_t> channels_last_sizes(const Tensor& images) {
  std::vector<int64_t> shape = sizes(images);
  std::rotate(shape.end() - 3, shape.end() - 2, shape.end());
  return shape;
}

// The dense (...,H,W,C) memory of images (...,C,H,W): their own if it is that, else a copy.
template <class T>
Tensor to_channels_last(const Tensor& images) {
  if (is_dense_channels_last(images)) {
    const std::vector<int64_t> shape = channels_last_sizes(images);
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t axis = shape.size() - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * shape[axis];
    return stable::from_blob(images.data_ptr(), shape, strides, images.device(), images.scalar_type());
  }
  Tensor memory = stable::new_empty(images, channels_last_sizes(images));
  if (images.is_contiguous()) {
    const int64_t dim = images.dim(), channels = images.size(dim - 3),
                  pixels = images.size(dim - 2) * images.size(dim - 1);
    const int64_t count = images.numel() / std::max<int64_t>(1, channels * pixels);
    parallel_rows(count, channels * pixels, [&](int64_t begin, int64_t end) {
      gate_kernels<T>().transpose(begin, end, channels, pixels, data<T>(images), data<T>(memory));
    });
  } else {
    Tensor view = channels_first_view(memory);
    stable::copy_(view, images);
  }
  return memory;
}

// images (...,C,H,W) from dense (...,H,W,C) memory: a view if channels_last, else a contiguous copy.
template <class T>
Tensor from_channels_last(const Tensor& memory, bool channels_last) {
  const Tensor view = channels_first_view(memory);
  if (channels_last) return view;
  const Tensor images = stable::new_empty(memory, sizes(view));
  const int64_t dim = memory.dim(), channels = memory.size(dim - 1),
                pixels = memory.size(dim - 2) * memory.size(dim - 3);
  const int64_t count = memory.numel() / std::max<int64_t>(1, channels * pixels);
  parallel_rows(count, channels * pixels, [&](int64_t begin, int64_t end) {
    gate_kernels<T>().transpose(begin, end, pixels, channels, data<T>(memory), data<T>(images));
  });
  return images;
}

// The images [first, first+count) of dense (...,H,W,channels) memory, for a convolution.
template <class T>
Tensor images_of(const Tensor& memory, int64_t first, int64_t count, const Problem& p) {
  const int64_t channels = memory.size(memory.dim() - 1);
  return images_view(
      data<T>(memory) + first * p.pixels() * channels, memory, count, channels, p.H, p.W, channels);
}

// The hidden weights as the convolutions that the variant needs: one, or two because r.h needs r first.
struct HiddenConvolutions {
  std::vector<Convolution> parts;  // "gru-rcn": U_rz (2K,K), U_n (K,K); "cudnn": U (3K,K)

  HiddenConvolutions(const Tensor& weight_hh, const Problem& p) {
    if (p.cudnn) {
      parts.emplace_back(weight_hh, p.fast);
    } else {
      parts.emplace_back(stable::narrow(const_cast<Tensor&>(weight_hh), 0, 0, 2 * p.K), p.fast);
      parts.emplace_back(stable::narrow(const_cast<Tensor&>(weight_hh), 0, 2 * p.K, p.K), p.fast);
    }
  }
};

// The biases that add to the pre-activations directly, (3K,): all but the b_hn of "cudnn", which r
// multiplies.
template <class T>
Optional direct_bias(const Optional& bias_ih, const Optional& bias_hh, const Problem& p) {
  if (!bias_ih.has_value() && !bias_hh.has_value()) return std::nullopt;
  Tensor sum = stable::new_zeros(bias_ih.has_value() ? *bias_ih : *bias_hh, {3 * p.K});
  const int64_t hidden = p.cudnn ? 2 * p.K : 3 * p.K;
  if (bias_ih.has_value()) gate_kernels<T>().add(0, 1, 3 * p.K, data<T>(sum), data<T>(bias_ih), 1, 0, 0);
  if (bias_hh.has_value()) gate_kernels<T>().add(0, 1, hidden, data<T>(sum), data<T>(bias_hh), 1, 0, 0);
  return sum;
}

// What the gates receive from outside the recurrence, for all time steps at once: W*x + biases + gate_bias,
// dense (T,N,H,W,3K), always memory of its own.
template <class T>
Tensor input_gates(
    const Optional& input, const Optional& weight_ih, const Optional& bias_ih, const Optional& bias_hh,
    const Optional& gate_bias, const Problem& p) {
  const Optional bias = direct_bias<T>(bias_ih, bias_hh, p);
  const int64_t width = 3 * p.K;
  const auto add = [&](const Tensor& a, const T* x, int64_t image_stride, int64_t pixel_stride) {
    parallel_rows(p.all_rows(), width, [&](int64_t begin, int64_t end) {
      gate_kernels<T>().add(begin, end, width, data<T>(a), x, p.pixels(), image_stride, pixel_stride);
    });
  };
  Tensor a;
  if (input.has_value()) {
    const Tensor x = to_channels_last<T>(*input);
    const Tensor y = Convolution(*weight_ih, p.fast).forward(images_of<T>(x, 0, p.images(), p), bias);
    a = stable::transpose(stable::transpose(y, 1, 2), 2, 3);  // (T*N,H,W,3K), dense
    a = stable::view(a, {p.T, p.N, p.H, p.W, width});
  } else {
    a = stable::new_zeros(*gate_bias, {p.T, p.N, p.H, p.W, width});
    if (bias.has_value()) add(a, data<T>(bias), 0, 0);
  }
  if (gate_bias.has_value()) {
    const bool full = gate_bias->size(3) * gate_bias->size(4) == p.pixels();
    const Tensor extra = to_channels_last<T>(*gate_bias);
    add(a, data<T>(extra), full ? p.pixels() * width : width, full ? width : 0);
  }
  return a;
}

template <class T>
std::tuple<Tensor, Tensor> forward(
    const Optional& input, const Optional& hx, const Optional& weight_ih, const Tensor& weight_hh,
    const Optional& bias_ih, const Optional& bias_hh, const Optional& gate_bias, const Problem& p,
    bool save_gates) {
  const GateKernels<T>& kernels = gate_kernels<T>();
  const bool channels_last = is_channels_last(input.has_value() ? *input : hx.has_value() ? *hx : *gate_bias);
  const Tensor states = stable::new_empty(weight_hh, {p.T, p.N, p.H, p.W, p.K});
  const std::vector<int64_t> gates_shape =
      save_gates ? std::vector<int64_t>{p.T, p.N, p.H, p.W, p.gates_kept() * p.K} : std::vector<int64_t>{0};
  if (p.all_rows() == 0)
    return {from_channels_last<T>(states, channels_last), stable::new_empty(weight_hh, gates_shape)};

  const Tensor a = input_gates<T>(input, weight_ih, bias_ih, bias_hh, gate_bias, p);
  Tensor gates = a;  // "gru-rcn" overwrites the pre-activations by the gates
  if (p.cudnn || !save_gates) gates = stable::new_empty(weight_hh, gates_shape);
  const HiddenConvolutions hidden(weight_hh, p);
  const T* b_hn = p.cudnn && bias_hh.has_value() ? data<T>(bias_hh) + 2 * p.K : nullptr;
  const Tensor rh = p.cudnn ? Tensor() : stable::new_empty(weight_hh, {p.N, p.H, p.W, p.K});

  // Where lengths are given a state can stand still while its output is zero: then it has memory of its own.
  const Optional hx_memory = hx.has_value() ? Optional(to_channels_last<T>(*hx)) : std::nullopt;
  std::array<Tensor, 2> carried;
  if (p.lengths != nullptr)
    for (Tensor& state : carried) state = stable::new_empty(weight_hh, {p.N, p.H, p.W, p.K});

  Optional h = hx_memory;  // memory of which the images [h_first, h_first+N) are the previous state
  int64_t h_first = 0;
  for (int64_t i = 0; i < p.T; ++i) {
    const int64_t t = p.time(i);
    const Valid valid = p.valid(t);
    const T* h_data = h.has_value() ? data<T>(*h) + h_first * p.pixels() * p.K : nullptr;
    T* a_t = data<T>(a) + t * p.rows() * 3 * p.K;
    T* output = data<T>(states) + t * p.rows() * p.K;
    T* state = p.lengths == nullptr ? output : data<T>(carried[i % 2]);
    const auto convolve = [&](const Convolution& convolution, const Tensor& x, int64_t first) -> Optional {
      if (h_data == nullptr) return std::nullopt;
      return convolution.forward(images_of<T>(x, first, p.N, p), std::nullopt);
    };
    if (p.cudnn) {
      const Optional c = convolve(hidden.parts[0], h.has_value() ? *h : rh, h_first);
      T* gates_t = save_gates ? data<T>(gates) + t * p.rows() * 4 * p.K : nullptr;
      parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
        kernels.cudnn_step(begin, end, p.K, valid, a_t, data<T>(c), b_hn, h_data, gates_t, state, output);
      });
    } else {
      const Optional c_rz = convolve(hidden.parts[0], h.has_value() ? *h : rh, h_first);
      parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
        kernels.reset_update(begin, end, p.K, a_t, data<T>(c_rz), h_data, data<T>(rh));
      });
      const Optional c_n = convolve(hidden.parts[1], rh, 0);
      parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
        kernels.candidate(begin, end, p.K, valid, a_t, data<T>(c_n), h_data, state, output);
      });
    }
    h = p.lengths == nullptr ? states : carried[i % 2];
    h_first = p.lengths == nullptr ? t * p.N : 0;
  }
  return {from_channels_last<T>(states, channels_last), gates};
}

// The state before each step, dense (T,N,H,W,K), from the outputs of the sequence. At steps past a sample's
// length it is whatever it is: no gradient passes there.
template <class T>
Tensor previous_states(const Tensor& output, const Optional& hx, const Problem& p) {
  const Tensor states = to_channels_last<T>(output);
  const Optional first = hx.has_value() ? Optional(to_channels_last<T>(*hx)) : std::nullopt;
  const Tensor previous = stable::new_empty(output, {p.T, p.N, p.H, p.W, p.K});
  const int64_t size = p.pixels() * p.K;
  parallel_rows(p.images(), size, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const int64_t t = image / p.N, n = image % p.N;
      const int64_t before = p.reverse ? t + 1 : t - 1;
      T* target = data<T>(previous) + image * size;
      if (!p.starts(t, n) && before >= 0 && before < p.T) {
        std::copy_n(data<T>(states) + (before * p.N + n) * size, size, target);
      } else if (first.has_value()) {
        std::copy_n(data<T>(*first) + n * size, size, target);
      } else {
        std::fill_n(target, size, T{});
      }
    }
  });
  return previous;
}

// The gates of every step, computed again from the states, all steps at once: what forward saves with
// save_gates.
template <class T>
Tensor recompute_gates(
    const Optional& input, const Optional& weight_ih, const Optional& bias_ih, const Optional& bias_hh,
    const Optional& gate_bias, const Tensor& previous, const HiddenConvolutions& hidden, const Problem& p) {
  const GateKernels<T>& kernels = gate_kernels<T>();
  const Tensor a = input_gates<T>(input, weight_ih, bias_ih, bias_hh, gate_bias, p);
  const Tensor c = hidden.parts[0].forward(images_of<T>(previous, 0, p.images(), p), std::nullopt);
  if (p.cudnn) {
    const T* b_hn = bias_hh.has_value() ? data<T>(bias_hh) + 2 * p.K : nullptr;
    const Tensor gates = stable::new_empty(previous, {p.T, p.N, p.H, p.W, 4 * p.K});
    parallel_rows(p.all_rows(), p.K, [&](int64_t begin, int64_t end) {
      kernels.cudnn_step(
          begin, end, p.K, p.all_valid(), data<T>(a), data<T>(c), b_hn, data<T>(previous), data<T>(gates),
          nullptr, nullptr);
    });
    return gates;
  }
  const Tensor rh = stable::new_empty(previous, sizes(previous));
  parallel_rows(p.all_rows(), p.K, [&](int64_t begin, int64_t end) {
    kernels.reset_update(begin, end, p.K, data<T>(a), data<T>(c), data<T>(previous), data<T>(rh));
  });
  const Tensor c_n = hidden.parts[1].forward(images_of<T>(rh, 0, p.images(), p), std::nullopt);
  parallel_rows(p.all_rows(), p.K, [&](int64_t begin, int64_t end) {
    kernels.candidate(
        begin, end, p.K, p.all_valid(), data<T>(a), data<T>(c_n), data<T>(previous), nullptr, nullptr);
  });
  return a;
}

enum Argument { kInput, kHx, kWeightIh, kWeightHh, kBiasIh, kBiasHh, kGateBias, kNumDifferentiable };
using Gradients = std::array<Tensor, kNumDifferentiable>;

// A slice of the channels of dense (T,N,H,W,channels) memory, as images.
template <class T>
Tensor channels_of(const Tensor& memory, int64_t first, int64_t count, const Problem& p) {
  return images_view(
      data<T>(memory) + first, memory, p.images(), count, p.H, p.W, memory.size(memory.dim() - 1));
}

// The sum over all rows of dense (T,N,H,W,channels) memory: (channels,).
Tensor sum_rows(const Tensor& memory, const Problem& p) {
  const std::array<int64_t, 1> axis{0};
  return stable::sum(
      stable::view(memory, {p.all_rows(), memory.size(memory.dim() - 1)}), IntHeaderOnlyArrayRef(axis));
}

template <class T>
Gradients backward(
    const Tensor& grad_output, const Optional& input, const Optional& hx, const Optional& weight_ih,
    const Tensor& weight_hh, const Optional& bias_ih, const Optional& bias_hh, const Optional& gate_bias,
    const Tensor& output, const Tensor& gates_kept, const Problem& p, const std::vector<bool>& wanted) {
  const GateKernels<T>& kernels = gate_kernels<T>();
  Gradients gradients;
  const std::array<const Optional, kNumDifferentiable> arguments{input,   hx,      weight_ih, weight_hh,
                                                                 bias_ih, bias_hh, gate_bias};
  for (int i = 0; i < kNumDifferentiable; ++i) gradients[i] = stable::new_empty(grad_output, {0});
  if (p.all_rows() == 0) {
    for (int i = 0; i < kNumDifferentiable; ++i)
      if (wanted[i]) gradients[i] = stable::new_zeros(*arguments[i], sizes(*arguments[i]));
    // Without a step the state is the initial one, but no output depends on it.
    return gradients;
  }

  const HiddenConvolutions hidden(weight_hh, p);
  const Tensor previous = previous_states<T>(output, hx, p);
  const Tensor gates =
      gates_kept.numel() > 0
          ? gates_kept
          : recompute_gates<T>(input, weight_ih, bias_ih, bias_hh, gate_bias, previous, hidden, p);
  const Tensor grad_states = to_channels_last<T>(grad_output);
  const auto new_buffer = [&](int64_t channels) {
    return stable::new_empty(weight_hh, {p.N, p.H, p.W, channels});
  };
  // d: gradients of the pre-activations; d_hidden: of the hidden convolutions' outputs, where "cudnn" has
  // d_q, not d_n.
  const Tensor d = stable::new_empty(weight_hh, {p.T, p.N, p.H, p.W, 3 * p.K});
  const Tensor d_hidden = p.cudnn ? stable::new_empty(weight_hh, {p.T, p.N, p.H, p.W, 3 * p.K}) : d;
  const bool keep_rh = !p.cudnn && wanted[kWeightHh];
  const Tensor rh = keep_rh ? stable::new_empty(weight_hh, {p.T, p.N, p.H, p.W, p.K}) : Tensor();
  const Tensor d_n = p.cudnn ? Tensor() : new_buffer(p.K);
  const Tensor d_rz = p.cudnn ? Tensor() : new_buffer(2 * p.K);
  const Tensor carry = stable::new_zeros(weight_hh, {p.N, p.H, p.W, p.K});
  const Tensor carry_images = images_of<T>(carry, 0, p.N, p);
  Optional carry_conv;  // (N,K,H,W): what the last step's convolution adds to carry

  for (int64_t i = p.T - 1; i >= 0; --i) {
    const int64_t t = p.time(i);
    const Valid valid = p.valid(t);
    const int64_t offset = t * p.rows() * p.K;
    // Before a zero state nothing flows further, and r.h is zero too. With lengths the reverse direction
    // starts at a step of its own in each sample: those zeros are then in `previous`.
    const bool from_zero = i == 0 && !hx.has_value();
    const T* h = from_zero ? nullptr : data<T>(previous) + offset;
    const T* grad_t = data<T>(grad_states) + offset;
    T* d_t = data<T>(d) + 3 * offset;
    if (p.cudnn) {
      T* d_hidden_t = data<T>(d_hidden) + 3 * offset;
      parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
        kernels.cudnn_step_backward(
            begin, end, p.K, valid, grad_t, data<T>(carry_conv), data<T>(gates) + 4 * offset, h,
            data<T>(carry), d_t, d_hidden_t);
      });
      if (i > 0 || wanted[kHx])
        carry_conv = hidden.parts[0].grad_input(carry_images, images_of<T>(d_hidden, t * p.N, p.N, p));
      continue;
    }
    const T* gates_t = data<T>(gates) + 3 * offset;
    parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
      kernels.candidate_backward(
          begin, end, p.K, valid, grad_t, data<T>(carry_conv), gates_t, h, data<T>(carry), d_t, data<T>(d_n));
    });
    Optional g;
    if (!from_zero) g = hidden.parts[1].grad_input(carry_images, images_of<T>(d_n, 0, p.N, p));
    parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
      kernels.reset_update_backward(
          begin, end, p.K, data<T>(g), gates_t, h, data<T>(carry), d_t, data<T>(d_rz),
          keep_rh ? data<T>(rh) + offset : nullptr);
    });
    if (i > 0 || wanted[kHx])
      carry_conv = hidden.parts[0].grad_input(carry_images, images_of<T>(d_rz, 0, p.N, p));
  }

  if (wanted[kHx]) {
    parallel_rows(p.rows(), p.K, [&](int64_t begin, int64_t end) {
      kernels.add(begin, end, p.K, data<T>(carry), data<T>(carry_conv), p.rows(), 0, p.K);
    });
    gradients[kHx] = from_channels_last<T>(carry, is_channels_last(*hx));
  }
  if (wanted[kInput] || wanted[kWeightIh]) {
    const Convolution convolution(*weight_ih, p.fast);
    const Tensor x_memory = to_channels_last<T>(*input);
    const Tensor x = images_of<T>(x_memory, 0, p.images(), p);
    const Tensor d_images = images_of<T>(d, 0, p.images(), p);
    if (wanted[kWeightIh]) gradients[kWeightIh] = convolution.grad_weight(x, d_images, p.N);
    if (wanted[kInput]) {
      const Tensor grad = convolution.grad_input(x, d_images);
      const Tensor memory = stable::view(
          stable::transpose(stable::transpose(grad, 1, 2), 2, 3), {p.T, p.N, p.H, p.W, input->size(2)});
      gradients[kInput] = from_channels_last<T>(memory, is_channels_last(*input));
    }
  }
  if (wanted[kWeightHh]) {
    const Tensor h_all = images_of<T>(previous, 0, p.images(), p);
    if (p.cudnn) {
      gradients[kWeightHh] =
          hidden.parts[0].grad_weight(h_all, images_of<T>(d_hidden, 0, p.images(), p), p.N);
    } else {
      gradients[kWeightHh] = stable::new_empty(weight_hh, sizes(weight_hh));
      Tensor grad_rz = stable::narrow(gradients[kWeightHh], 0, 0, 2 * p.K);
      Tensor grad_n = stable::narrow(gradients[kWeightHh], 0, 2 * p.K, p.K);
      stable::copy_(grad_rz, hidden.parts[0].grad_weight(h_all, channels_of<T>(d, 0, 2 * p.K, p), p.N));
      stable::copy_(
          grad_n, hidden.parts[1].grad_weight(
                      images_of<T>(rh, 0, p.images(), p), channels_of<T>(d, 2 * p.K, p.K, p), p.N));
    }
  }
  if (wanted[kBiasIh]) gradients[kBiasIh] = sum_rows(d, p);
  if (wanted[kBiasHh]) gradients[kBiasHh] = sum_rows(d_hidden, p);
  if (wanted[kGateBias]) {
    const bool full = gate_bias->size(3) * gate_bias->size(4) == p.pixels();
    if (full) {
      gradients[kGateBias] = from_channels_last<T>(d, is_channels_last(*gate_bias));
    } else {
      const std::array<int64_t, 1> axis{1};
      const Tensor sum =
          stable::sum(stable::view(d, {p.images(), p.pixels(), 3 * p.K}), IntHeaderOnlyArrayRef(axis));
      gradients[kGateBias] = stable::view(sum, sizes(*gate_bias));
    }
  }
  return gradients;
}

// Calls f with a value of the storage type.
template <class F>
auto dispatch(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      STD_TORCH_CHECK(false, "weight_hh: expected float32, float64, bfloat16 or float16");
  }
}

// What is read through plain pointers.
Optional contiguous(const Optional& tensor) {
  return tensor.has_value() ? Optional(stable::contiguous(*tensor)) : std::nullopt;
}

void check_bias(const char* name, const Optional& bias, const Tensor& weight_hh) {
  STD_TORCH_CHECK(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight_hh.size(0)), name, ": expected (",
      weight_hh.size(0), ",)");
}

std::tuple<Tensor, Tensor> conv_gru(
    const Optional input, const Optional hx, const Optional weight_ih, const Tensor weight_hh,
    const Optional bias_ih_given, const Optional bias_hh_given, const Optional gate_bias,
    const Optional lengths_given, const std::string variant, bool reverse, bool fast, bool save_gates) {
  const Optional bias_ih = contiguous(bias_ih_given), bias_hh = contiguous(bias_hh_given);
  const Optional lengths = contiguous(lengths_given);
  check_same("input", input, weight_hh);
  check_same("hx", hx, weight_hh);
  check_same("weight_ih", weight_ih, weight_hh);
  check_same("bias_ih", bias_ih, weight_hh);
  check_same("bias_hh", bias_hh, weight_hh);
  check_same("gate_bias", gate_bias, weight_hh);
  check_bias("bias_ih", bias_ih, weight_hh);
  check_bias("bias_hh", bias_hh, weight_hh);
  const Problem p = describe(input, hx, weight_ih, weight_hh, gate_bias, lengths, variant, reverse, fast);
  return dispatch(weight_hh.scalar_type(), [&](auto zero) {
    return forward<decltype(zero)>(
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, p, save_gates);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_gru_backward(
    const Tensor grad_output, const Optional input, const Optional hx, const Optional weight_ih,
    const Tensor weight_hh, const Optional bias_ih_given, const Optional bias_hh_given,
    const Optional gate_bias, const Optional lengths_given, const Tensor output, const Tensor gates_given,
    const std::string variant, bool reverse, bool fast, const std::vector<bool> output_mask) {
  const Optional bias_ih = contiguous(bias_ih_given), bias_hh = contiguous(bias_hh_given);
  const Optional lengths = contiguous(lengths_given);
  const Tensor gates = stable::contiguous(gates_given);
  check_same("grad_output", grad_output, weight_hh);
  STD_TORCH_CHECK(
      output_mask.size() == kNumDifferentiable, "output_mask: expected ", int(kNumDifferentiable),
      " values, got ", output_mask.size());
  const Problem p = describe(input, hx, weight_ih, weight_hh, gate_bias, lengths, variant, reverse, fast);
  Gradients g = dispatch(weight_hh.scalar_type(), [&](auto zero) {
    return backward<decltype(zero)>(
        grad_output, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, output, gates, p,
        output_mask);
  });
  return {g[kInput], g[kHx], g[kWeightIh], g[kWeightHh], g[kBiasIh], g[kBiasHh], g[kGateBias]};
}

}  // namespace
}  // namespace convgru::cpu

STABLE_TORCH_LIBRARY_IMPL(convgru_fused, CPU, m) {
  m.impl("conv_gru", TORCH_BOX(&convgru::cpu::conv_gru));
  m.impl("conv_gru_backward", TORCH_BOX(&convgru::cpu::conv_gru_backward));
}
