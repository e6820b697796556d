// The operators of csrc/ops.cpp on the CPU: checks and choice of the type.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "recurrence.h"

namespace convgru::cpu {
namespace {

using torch::headeronly::ScalarType;

Problem describe(const Arguments& arguments, const std::string& variant, bool reverse, bool fast) {
  const auto& [input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths] = arguments;
  STD_TORCH_CHECK(
      variant == "gru-rcn" || variant == "cudnn", "variant: expected 'gru-rcn' or 'cudnn', got ", variant);
  STD_TORCH_CHECK(
      input.has_value() || gate_bias.has_value(), "input: expected a Tensor if there is no gate_bias");
  STD_TORCH_CHECK(input.has_value() == weight_ih.has_value(), "weight_ih: expected together with input");
  const Tensor& sequence = input.has_value() ? *input : *gate_bias;
  STD_TORCH_CHECK(sequence.dim() == 5, "input: expected 5 dimensions (T,N,C,H,W), got ", sequence.dim());
  STD_TORCH_CHECK(
      weight_hh.dim() == 4, "weight_hh: expected (3K,K,kh,kw), got ", weight_hh.dim(), " dimensions");
  const auto check_kernel = [](const char* name, const Tensor& weight) {
    STD_TORCH_CHECK(
        weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, name, ": expected an odd kernel, got ",
        weight.size(2), "x", weight.size(3));
  };
  check_kernel("weight_hh", weight_hh);
  const Tensor& images = input.has_value() || !hx.has_value() ? sequence : *hx;
  Problem p{};
  p.T = sequence.size(0);
  p.N = sequence.size(1);
  p.K = weight_hh.size(1);
  p.H = images.size(images.dim() - 2);
  p.W = images.size(images.dim() - 1);
  p.cudnn = variant == "cudnn";
  p.reverse = reverse;
  p.mode.not_finite = {nullptr, std::max<int64_t>(1, p.N)};
  const bool wide = weight_hh.scalar_type() == ScalarType::Float;
  // Beside the rounding of 16-bit storage that of a fast algorithm does not count.
  p.mode.numerics = {fast || !wide, weight_hh.scalar_type() == ScalarType::Double, false};
  STD_TORCH_CHECK(
      weight_hh.size(0) == 3 * p.K, "weight_hh: expected ", 3 * p.K, " outputs, got ", weight_hh.size(0));
  if (input.has_value()) {
    STD_TORCH_CHECK(
        weight_ih->dim() == 4 && weight_ih->size(0) == 3 * p.K && weight_ih->size(1) == input->size(2),
        "weight_ih: expected (", 3 * p.K, ",", input->size(2), ",kh,kw)");
    check_kernel("weight_ih", *weight_ih);
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

// A weight whose memory is dense, O outermost: as it is, contiguous or channels last, else a copy.
Tensor dense_weight(const Tensor& weight) {
  if (weight.dim() != 4) return weight;  // describe says what is wrong with it
  const int64_t in = weight.size(1), kernel_h = weight.size(2), kernel_w = weight.size(3);
  const bool channels_last = weight.stride(1) == 1 && (weight.stride(3) == in || kernel_w == 1) &&
                             (weight.stride(2) == kernel_w * in || kernel_h == 1) &&
                             weight.stride(0) == kernel_h * kernel_w * in;
  return weight.is_contiguous() || channels_last ? weight : stable::contiguous(weight);
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

Optional dense_weight(const Optional& weight) {
  return weight.has_value() ? Optional(dense_weight(*weight)) : std::nullopt;
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

// f(p), where f runs convolutions; then the samples for which a fast algorithm came to infinities or NaNs.
template <class F>
std::vector<int64_t> not_finite_samples(const Problem& p, const F& f) {
  const auto flags = std::make_unique<std::atomic<bool>[]>(std::max<int64_t>(1, p.N));
  Problem noted = p;
  noted.mode.not_finite.flags = flags.get();
  f(noted);
  std::vector<int64_t> samples;
  for (int64_t n = 0; n < p.N; ++n)
    if (flags[n]) samples.push_back(n);
  return samples;
}

Tensor sample_of(const Tensor& tensor, int64_t axis, int64_t n) {
  return stable::narrow(const_cast<Tensor&>(tensor), axis, n, 1);
}

Optional sample_of(const Optional& tensor, int64_t axis, int64_t n) {
  return tensor.has_value() ? Optional(sample_of(*tensor, axis, n)) : std::nullopt;
}

// forward, the samples that are not finite once more by the direct sum: that has infinities and NaNs only
// where they belong, and the other samples must not notice.
template <class T>
std::tuple<Tensor, Tensor> forward_finite(const Arguments& arguments, const Problem& p, bool save_gates) {
  std::tuple<Tensor, Tensor> result;
  const auto run = [&](const Problem& q) { result = forward<T>(arguments, q, save_gates); };
  for (const int64_t n : not_finite_samples(p, run)) {
    Arguments one = arguments;
    one.input = sample_of(arguments.input, 1, n);
    one.hx = sample_of(arguments.hx, 0, n);
    one.gate_bias = sample_of(arguments.gate_bias, 1, n);
    Problem q = p;
    q.N = q.mode.not_finite.samples = 1;
    q.lengths = p.lengths == nullptr ? nullptr : p.lengths + n;
    q.mode.numerics.only_direct = true;
    const auto [output, gates] = forward<T>(one, q, save_gates);
    Tensor target = sample_of(std::get<0>(result), 1, n);
    stable::copy_(target, output);
    if (!save_gates) continue;
    target = sample_of(std::get<1>(result), 1, n);
    stable::copy_(target, gates);
  }
  return result;
}

// backward; all of it once more by the direct sum if a sample is not finite, for the weight gradients are
// sums over all samples.
template <class T>
Gradients backward_finite(
    const Tensor& grad_output, const Arguments& arguments, const Tensor& output, const Tensor& gates,
    Problem p, const std::vector<bool>& wanted) {
  Gradients result;
  const auto run = [&](const Problem& q) {
    result = backward<T>(grad_output, arguments, output, gates, q, wanted);
  };
  if (not_finite_samples(p, run).empty()) return result;
  p.mode.numerics.only_direct = true;
  run(p);
  return result;
}

// The arguments of both operators, made ready, and the problem that they describe.
std::tuple<Arguments, Problem> prepare(
    const Optional& input, const Optional& hx, const Optional& weight_ih, const Tensor& weight_hh,
    const Optional& bias_ih, const Optional& bias_hh, const Optional& gate_bias, const Optional& lengths,
    const std::string& variant, bool reverse, bool fast) {
  check_same("input", input, weight_hh);
  check_same("hx", hx, weight_hh);
  check_same("weight_ih", weight_ih, weight_hh);
  check_same("bias_ih", bias_ih, weight_hh);
  check_same("bias_hh", bias_hh, weight_hh);
  check_same("gate_bias", gate_bias, weight_hh);
  check_bias("bias_ih", bias_ih, weight_hh);
  check_bias("bias_hh", bias_hh, weight_hh);
  const Arguments arguments{
      input,
      hx,
      dense_weight(weight_ih),
      dense_weight(weight_hh),
      contiguous(bias_ih),
      contiguous(bias_hh),
      gate_bias,
      contiguous(lengths)};
  return {arguments, describe(arguments, variant, reverse, fast)};
}

std::tuple<Tensor, Tensor> conv_gru(
    const Optional input, const Optional hx, const Optional weight_ih, const Tensor weight_hh,
    const Optional bias_ih, const Optional bias_hh, const Optional gate_bias, const Optional lengths,
    const std::string variant, bool reverse, bool fast, bool save_gates) {
  const auto [arguments, p] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse, fast);
  return dispatch(weight_hh.scalar_type(), [&, &arguments = arguments, &p = p](auto zero) {
    return forward_finite<decltype(zero)>(arguments, p, save_gates);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_gru_backward(
    const Tensor grad_output, const Optional input, const Optional hx, const Optional weight_ih,
    const Tensor weight_hh, const Optional bias_ih, const Optional bias_hh, const Optional gate_bias,
    const Optional lengths, const Tensor output, const Tensor gates, const std::string variant, bool reverse,
    bool fast, const std::vector<bool> output_mask) {
  check_same("grad_output", grad_output, weight_hh);
  check_same("output", output, weight_hh);
  check_same("gates", gates, weight_hh);
  STD_TORCH_CHECK(
      output_mask.size() == kNumDifferentiable, "output_mask: expected ", kNumDifferentiable, " values, got ",
      output_mask.size());
  const auto [arguments, p] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse, fast);
  for (const auto& [name, images] : {std::pair("grad_output", grad_output), std::pair("output", output)})
    STD_TORCH_CHECK(
        images.dim() == 5 && images.numel() == p.T * p.state_size(), name, ": expected (", p.T, ",", p.N, ",",
        p.K, ",", p.H, ",", p.W, ")");
  STD_TORCH_CHECK(
      gates.numel() == 0 || gates.numel() == p.all_rows() * p.gates_kept() * p.K, "gates: expected ",
      p.all_rows() * p.gates_kept() * p.K, " elements or none, got ", gates.numel());
  const Tensor gates_kept = stable::contiguous(gates);
  Gradients g = dispatch(weight_hh.scalar_type(), [&, &arguments = arguments, &p = p](auto zero) {
    return backward_finite<decltype(zero)>(grad_output, arguments, output, gates_kept, p, output_mask);
  });
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

}  // namespace
}  // namespace convgru::cpu

STABLE_TORCH_LIBRARY_IMPL(convgru_fused, CPU, m) {
  m.impl("conv_gru", TORCH_BOX(&convgru::cpu::conv_gru));
  m.impl("conv_gru_backward", TORCH_BOX(&convgru::cpu::conv_gru_backward));
}
