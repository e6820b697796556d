// The operators of csrc/schemas.h on a GPU: checks and choice of the type. Compiled with CONVGRU_CUDA_ON_HOST
// (tests/cuda_on_host) they run on CPU tensors, under a name of their own.
#include <torch/csrc/stable/library.h>

#include "../schemas.h"
#include "device.h"
#include "recurrence.h"
#include "timing.h"
#include "tuning.h"

namespace convgru::cuda {
namespace {

std::tuple<Tensor, Tensor> conv_gru(
    const Optional input, const Optional hx, const Optional weight_ih, const Tensor weight_hh,
    const Optional bias_ih, const Optional bias_hh, const Optional gate_bias, const Optional lengths,
    const std::string variant, bool reverse, bool fast, bool save_gates) {
  const OnDevice device(weight_hh);
  const auto [arguments, p] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse);
  const auto run = [&](const Call& call) {
    return dispatch<bfloat16, float16>(
        weight_hh.scalar_type(), [&](auto zero) { return forward<decltype(zero)>(call, save_gates); });
  };
  Call call{arguments, p, fast, device.stream(), is_capturing(device.stream()), /*backward=*/false};
  call.may_be_warpgroups = can_be_warpgroups(call);
  call.way = measured_way(call, variant + (save_gates ? " forward for backward" : " forward"), run);
  return run(call);
}

GradientTuple conv_gru_backward(
    const Tensor grad_output, const Optional input, const Optional hx, const Optional weight_ih,
    const Tensor weight_hh, const Optional bias_ih, const Optional bias_hh, const Optional gate_bias,
    const Optional lengths, const Tensor output, const Tensor gates, const std::string variant, bool reverse,
    bool fast, const std::vector<bool> output_mask) {
  const OnDevice device(weight_hh);
  const auto [arguments, p] =
      prepare(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse);
  check_backward(grad_output, output, gates, weight_hh, output_mask, p);
  const Tensor gates_kept = as_contiguous(gates);
  const auto run = [&](const Call& call) {
    return dispatch<bfloat16, float16>(weight_hh.scalar_type(), [&](auto zero) {
      return backward<decltype(zero)>(call, grad_output, output, gates_kept, output_mask);
    });
  };
  Call call{arguments, p, fast, device.stream(), is_capturing(device.stream()), /*backward=*/true};
  call.may_be_warpgroups = can_be_warpgroups(call);
  call.way = measured_way(call, variant + " backward", run);
  return as_tuple(run(call));
}

}  // namespace
}  // namespace convgru::cuda

#if defined(CONVGRU_CUDA_ON_HOST)
STABLE_TORCH_LIBRARY(convgru_fused_cuda_on_host, m) {
  m.def(CONVGRU_FORWARD_SCHEMA);
  m.def(CONVGRU_BACKWARD_SCHEMA);
}
STABLE_TORCH_LIBRARY_IMPL(convgru_fused_cuda_on_host, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(convgru_fused, CUDA, m) {
#endif
  m.impl("conv_gru", TORCH_BOX(&convgru::cuda::conv_gru));
  m.impl("conv_gru_backward", TORCH_BOX(&convgru::cuda::conv_gru_backward));
}
