// The operators of csrc/schemas.h on the CPU: checks and choice of the type.
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

// The problem with the arithmetic that is asked for.
Problem with_mode(const convgru::Problem& problem, const Tensor& weight, bool fast) {
  Problem p{problem, {}};
  const ScalarType type = weight.scalar_type();
  // Beside the rounding of 16-bit storage that of a fast algorithm does not count.
  p.mode.numerics = {fast || type != ScalarType::Float, type == ScalarType::Double, false};
  p.mode.not_finite = {nullptr, std::max<int64_t>(1, p.N)};
  return p;
}

std::tuple<Tensor, Tensor> conv_gru(
    const Optional input, const Optional hx, const Optional weight_ih, const Tensor weight_hh,
    const Optional bias_ih, const Optional bias_hh, const Optional gate_bias, const Optional lengths,
    const std::string variant, bool reverse, bool fast, bool save_gates) {
  const auto [arguments, problem] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse);
  const Problem p = with_mode(problem, weight_hh, fast);
  return dispatch<bfloat16, float16>(weight_hh.scalar_type(), [&, &arguments = arguments](auto zero) {
    return forward_finite<decltype(zero)>(arguments, p, save_gates);
  });
}

GradientTuple conv_gru_backward(
    const Tensor grad_output, const Optional input, const Optional hx, const Optional weight_ih,
    const Tensor weight_hh, const Optional bias_ih, const Optional bias_hh, const Optional gate_bias,
    const Optional lengths, const Tensor output, const Tensor gates, const std::string variant, bool reverse,
    bool fast, const std::vector<bool> output_mask) {
  const auto [arguments, problem] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse);
  check_backward(grad_output, output, gates, weight_hh, output_mask, problem);
  const Problem p = with_mode(problem, weight_hh, fast);
  const Tensor gates_kept = as_contiguous(gates);
  return as_tuple(
      dispatch<bfloat16, float16>(weight_hh.scalar_type(), [&, &arguments = arguments](auto zero) {
        return backward_finite<decltype(zero)>(grad_output, arguments, output, gates_kept, p, output_mask);
      }));
}

}  // namespace
}  // namespace convgru::cpu

STABLE_TORCH_LIBRARY_IMPL(convgru_fused, CPU, m) {
  m.impl("conv_gru", TORCH_BOX(&convgru::cpu::conv_gru));
  m.impl("conv_gru_backward", TORCH_BOX(&convgru::cpu::conv_gru_backward));
}
