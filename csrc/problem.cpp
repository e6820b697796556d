#include "problem.h"

namespace convgru {
namespace {

using torch::headeronly::ScalarType;

Problem describe(const Arguments& arguments, const std::string& variant, bool reverse) {
  const auto& [input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths] = arguments;
  STD_TORCH_CHECK(
      variant == "gru-rcn" || variant == "gru-rcn-relu" || variant == "cudnn",
      "variant: expected 'gru-rcn', 'gru-rcn-relu' or 'cudnn', got ", variant);
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
  p.relu = variant == "gru-rcn-relu";
  p.reverse = reverse;
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
    p.lengths = data<const int64_t>(*lengths);
  }
  return p;
}

void check_device(const char* name, const Tensor& tensor, const Tensor& weight) {
  STD_TORCH_CHECK(tensor.device() == weight.device(), name, ": expected the device of weight_hh");
}

void check_same(const char* name, const Optional& tensor, const Tensor& weight) {
  if (!tensor.has_value()) return;
  check_device(name, *tensor, weight);
  STD_TORCH_CHECK(tensor->scalar_type() == weight.scalar_type(), name, ": expected the dtype of weight_hh");
}

void check_bias(const char* name, const Optional& bias, const Tensor& weight_hh) {
  STD_TORCH_CHECK(
      !bias.has_value() || (bias->dim() == 1 && bias->size(0) == weight_hh.size(0)), name, ": expected (",
      weight_hh.size(0), ",)");
}

// A weight whose memory is dense, O outermost: as it is, contiguous or channels last, else a copy.
Tensor dense_weight(const Tensor& weight) {
  if (weight.dim() != 4) return weight;  // describe says what is wrong with it
  const int64_t in = weight.size(1), kernel_h = weight.size(2), kernel_w = weight.size(3);
  const bool channels_last = weight.stride(1) == 1 && (weight.stride(3) == in || kernel_w == 1) &&
                             (weight.stride(2) == kernel_w * in || kernel_h == 1) &&
                             weight.stride(0) == kernel_h * kernel_w * in;
  return channels_last ? weight : as_contiguous(weight);
}

Optional dense_weight(const Optional& weight) {
  return weight.has_value() ? Optional(dense_weight(*weight)) : std::nullopt;
}

// What is read through plain pointers.
Optional contiguous_or_none(const Optional& tensor) {
  return tensor.has_value() ? Optional(as_contiguous(*tensor)) : std::nullopt;
}

}  // namespace

std::tuple<Arguments, Problem> prepare(
    const Optional& input, const Optional& hx, const Optional& weight_ih, const Tensor& weight_hh,
    const Optional& bias_ih, const Optional& bias_hh, const Optional& gate_bias, const Optional& lengths,
    const std::string& variant, bool reverse) {
  check_same("input", input, weight_hh);
  check_same("hx", hx, weight_hh);
  check_same("weight_ih", weight_ih, weight_hh);
  check_same("bias_ih", bias_ih, weight_hh);
  check_same("bias_hh", bias_hh, weight_hh);
  check_same("gate_bias", gate_bias, weight_hh);
  if (lengths.has_value()) check_device("lengths", *lengths, weight_hh);
  check_bias("bias_ih", bias_ih, weight_hh);
  check_bias("bias_hh", bias_hh, weight_hh);
  const Arguments arguments{
      input,
      hx,
      dense_weight(weight_ih),
      dense_weight(weight_hh),
      contiguous_or_none(bias_ih),
      contiguous_or_none(bias_hh),
      gate_bias,
      contiguous_or_none(lengths)};
  return {arguments, describe(arguments, variant, reverse)};
}

void check_backward(
    const Tensor& grad_output, const Tensor& output, const Tensor& gates, const Tensor& weight_hh,
    const std::vector<bool>& output_mask, const Problem& p) {
  for (const auto& [name, images] : {std::pair("grad_output", grad_output), std::pair("output", output)}) {
    check_same(name, images, weight_hh);
    STD_TORCH_CHECK(
        images.dim() == 5 && images.numel() == p.T * p.state_size(), name, ": expected (", p.T, ",", p.N, ",",
        p.K, ",", p.H, ",", p.W, ")");
  }
  check_same("gates", gates, weight_hh);
  const int64_t kept = p.all_rows() * p.gates_kept() * p.K;
  STD_TORCH_CHECK(
      gates.numel() == 0 || gates.numel() == kept, "gates: expected ", kept, " elements or none, got ",
      gates.numel());
  STD_TORCH_CHECK(
      output_mask.size() == kNumDifferentiable, "output_mask: expected ", kNumDifferentiable, " values, got ",
      output_mask.size());
}

Gradients zero_gradients(const Arguments& arguments, const std::vector<bool>& wanted) {
  const std::array<const Optional, kNumDifferentiable> tensors{
      arguments.input,   arguments.hx,      arguments.weight_ih, arguments.weight_hh,
      arguments.bias_ih, arguments.bias_hh, arguments.gate_bias};
  Gradients gradients;
  for (int i = 0; i < kNumDifferentiable; ++i)
    gradients[i] =
        wanted[i] ? stable::new_zeros(*tensors[i], sizes(*tensors[i])) : new_tensor(arguments.weight_hh, {0});
  return gradients;
}

}  // namespace convgru
