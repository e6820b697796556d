// The schemas of the operators, and nothing else. Implementations: csrc/<dispatch key>/; fake, autograd,
// autocast and vmap rules: convgru_fused/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(convgru_fused, m) {
  // fast allows algorithms that round more than the direct sum does (convgru_fused.precision).
  // -> states (T,N,K,H,W); gates (T,N,H,W,3K) r|z|n, for "cudnn" (T,N,H,W,4K) r|z|n|q, or (0,) unless
  // save_gates.
  m.def(
      "conv_gru(Tensor? input, Tensor? hx, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? "
      "bias_hh, "
      "Tensor? gate_bias, Tensor? lengths, str variant, bool reverse, bool fast, bool save_gates) -> "
      "(Tensor, Tensor)");
  // -> gradients of the first seven arguments of conv_gru; those that output_mask leaves out are (0,). gates
  // may be (0,).
  m.def(
      "conv_gru_backward(Tensor grad_output, Tensor? input, Tensor? hx, Tensor? weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? gate_bias, Tensor? lengths, Tensor output, Tensor gates, "
      "str variant, "
      "bool reverse, bool fast, bool[] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
}
