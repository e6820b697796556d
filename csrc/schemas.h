// The schemas of the operators. Implementations: csrc/<dispatch key>/; fake, autograd, autocast and vmap
// rules: convgru_fused/ops.py.
#pragma once

// fast allows arithmetic that rounds more than the dtype's own: on the CPU convgru_fused.precision("fast"),
// on a GPU TF32.
// -> states (T,N,K,H,W); gates (T,N,H,W,3K) r|z|n, for "cudnn" (T,N,H,W,4K) r|z|n|q, or (0,) unless
// save_gates.
#define CONVGRU_FORWARD_SCHEMA                                                                              \
  "conv_gru(Tensor? input, Tensor? hx, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? "      \
  "bias_hh, Tensor? gate_bias, Tensor? lengths, str variant, bool reverse, bool fast, bool save_gates) -> " \
  "(Tensor, Tensor)"

// -> gradients of the first seven arguments of conv_gru; those that output_mask leaves out are (0,). gates
// may be (0,).
#define CONVGRU_BACKWARD_SCHEMA                                                                             \
  "conv_gru_backward(Tensor grad_output, Tensor? input, Tensor? hx, Tensor? weight_ih, Tensor weight_hh, "  \
  "Tensor? bias_ih, Tensor? bias_hh, Tensor? gate_bias, Tensor? lengths, Tensor output, Tensor gates, str " \
  "variant, bool reverse, bool fast, bool[] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "      \
  "Tensor, Tensor)"
