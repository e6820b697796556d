// The backward pass: the recurrence of the states' gradients step by step, which leaves the gradients d of
// all pre-activations; what they add to the gradients of input and parameters, for all steps at once.
#include <optional>

#include "library.h"
#include "recurrence.h"

namespace convgru::cuda {
namespace {

// The buffers of all steps, channels last.
template <class T>
struct Buffers {
  const T* grad_output;  // (T,N,H,W,K)
  const T* previous;     // (T,N,H,W,K) the state before each step
  const T* gates;        // (T,N,H,W,width)
  T* d;   // (T,N,H,W,width) gradients of the pre-activations r|z|n, for "cudnn" also of q = U_n*h + b_hn
  T* rh;  // (T,N,H,W,K) r.h, or nullptr if nobody wants it
};

// Runs the recurrence backwards, which fills d and rh. Returns the gradient of the initial state, (N,H,W,K),
// if it is wanted.
template <class T>
Tensor run_backwards(const Call& call, const Buffers<T>& buffers, bool wants_hx) {
  const Problem& p = call.p;
  const int64_t K = p.K, width = p.gates_kept() * K;
  const int k = static_cast<int>(K);
  const Tensor carry = stable::new_zeros(call.weight_hh(), {p.N, p.H, p.W, K}), meet = meeting_place<T>(call);
  const BackwardSteps steps{p.T, p.reverse, call.arguments.hx.has_value(), p.rows()};
  const WeightPart<T> rz = transposed_rows_of<T>(call.weight_hh(), 0, 2 * K);
  const WeightPart<T> n = transposed_rows_of<T>(call.weight_hh(), 2 * K, K);
  const auto d_from = [&](int64_t first, int64_t count) {
    return source<T>(buffers.d + first, count, width);
  };
  // What the first step adds to the gradient of the state before it.
  const auto finish = [&](const Convolution<T>& of_next) {
    if (!wants_hx) return;
    convolve(moved(of_next, steps.row(p.T - 1) * width), StoreSums<T>{data<T>(carry), K, true}, call.stream);
  };

  if (p.cudnn) {
    const PackedConvolution<T> U(call, {rz, n}, K, K);
    const CudnnBackward<T> sequence{
        steps,
        {U.of(p.N, {d_from(0, 2 * K), d_from(3 * K, K)})},
        {k, call.valid(0), buffers.grad_output, buffers.gates, buffers.previous, data<T>(carry), buffers.d},
        data<unsigned>(meet)};
    run(sequence, call.stream);
    finish(sequence.convolutions[0]);
    return carry;
  }
  const PackedConvolution<T> U_rz(call, {rz}, K, K), U_n(call, {n}, K, K);
  const GruRcnBackward<T> sequence{
      steps,
      {U_rz.of(p.N, {d_from(0, 2 * K)}), U_n.of(p.N, {d_from(2 * K, K)})},
      {p.relu, k, call.valid(0), buffers.grad_output, buffers.gates, buffers.previous, data<T>(carry),
       buffers.d},
      {k, buffers.gates, buffers.previous, data<T>(carry), buffers.d, buffers.rh},
      data<unsigned>(meet)};
  run(sequence, call.stream);
  finish(sequence.convolutions[0]);
  return carry;
}

// Channels [first, first+count) of memory (...,C).
Tensor channels_of(const Tensor& memory, int64_t first, int64_t count) {
  Tensor all = memory;
  return stable::narrow(all, memory.dim() - 1, first, count);
}

// The d of the gates as the hidden side sees them: r|z|n, for "cudnn" r|z|q.
Tensor hidden_gradients(const Call& call, const Tensor& d) {
  const Problem& p = call.p;
  if (!p.cudnn) return d;
  const Tensor hidden = call.empty({p.T, p.N, p.H, p.W, 3 * p.K});
  Tensor rz = channels_of(hidden, 0, 2 * p.K), q = channels_of(hidden, 2 * p.K, p.K);
  stable::copy_(rz, channels_of(d, 0, 2 * p.K));
  stable::copy_(q, channels_of(d, 3 * p.K, p.K));
  return hidden;
}

Tensor sum(const Tensor& tensor, const std::vector<int64_t>& axes, bool keeps_axes) {
  return stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(axes), keeps_axes);
}

Tensor weight_gradient(const Tensor& d, const Tensor& x, const Tensor& weight) {
  return convolution_backward(flat_images(d), flat_images(x), weight, false, true).weight;
}

// The gradients of input and parameters. d: r|z|n, and q for "cudnn".
template <class T>
void collect(
    const Call& call, const Tensor& d, const Tensor& previous, const Optional& rh,
    const std::vector<bool>& wanted, Gradients& gradients) {
  const Problem& p = call.p;
  const Arguments& arguments = call.arguments;
  const int64_t K = p.K;
  const Tensor outside = p.cudnn ? channels_of(d, 0, 3 * K) : d;
  if (wanted[kInput] || wanted[kWeightIh]) {
    const Tensor x = valid_memory<T>(call, *arguments.input);
    const ConvolutionGradients found = convolution_backward(
        flat_images(outside), flat_images(x), *arguments.weight_ih, wanted[kInput], wanted[kWeightIh]);
    if (wanted[kInput])
      gradients[kInput] = as_images(
          stable::view(channels_last_memory(found.x), sizes(x)), is_channels_last(*arguments.input));
    if (wanted[kWeightIh]) gradients[kWeightIh] = stable::contiguous(found.weight);
  }
  if (wanted[kGateBias]) {
    const Tensor& maps = *arguments.gate_bias;
    const bool full = maps.size(3) * maps.size(4) == p.pixels();
    gradients[kGateBias] = as_images(
        full ? stable::contiguous(outside) : sum(outside, {2, 3}, /*keeps_axes=*/true),
        is_channels_last(maps));
  }
  if (wanted[kBiasIh]) gradients[kBiasIh] = sum(outside, {0, 1, 2, 3}, false);
  if (!wanted[kWeightHh] && !wanted[kBiasHh]) return;
  const Tensor hidden = hidden_gradients(call, d);
  if (wanted[kBiasHh]) gradients[kBiasHh] = sum(hidden, {0, 1, 2, 3}, false);
  if (!wanted[kWeightHh]) return;
  if (p.cudnn) {
    gradients[kWeightHh] = stable::contiguous(weight_gradient(hidden, previous, arguments.weight_hh));
    return;
  }
  Tensor weight = arguments.weight_hh, gradient = stable::new_empty(weight, sizes(weight));
  for (const auto& [x, first, count] : {std::tuple(previous, int64_t{0}, 2 * K), std::tuple(*rh, 2 * K, K)}) {
    Tensor part = stable::narrow(gradient, 0, first, count);
    stable::copy_(
        part, weight_gradient(channels_of(d, first, count), x, stable::narrow(weight, 0, first, count)));
  }
  gradients[kWeightHh] = gradient;
}

}  // namespace

template <class T>
Gradients backward(
    const Call& call, const Tensor& grad_output, const Tensor& output, const Tensor& gates_kept,
    const std::vector<bool>& wanted) {
  const Problem& p = call.p;
  const Arguments& arguments = call.arguments;
  // Without a step the state is the initial one, but no output depends on it.
  if (p.all_rows() == 0) return zero_gradients(arguments, wanted);
  Gradients gradients;
  for (Tensor& gradient : gradients) gradient = call.empty({0});

  const int64_t K = p.K;
  const Tensor previous = call.empty({p.T, p.N, p.H, p.W, K});
  const Tensor states = channels_last_memory(output);
  const Optional hx = arguments.hx.has_value() ? Optional(channels_last_memory(*arguments.hx)) : std::nullopt;
  previous_states(
      PreviousStates<T>{
          p.T, p.N, p.pixels() * K, p.reverse, p.lengths, data<const T>(states), data_or_null<T>(hx),
          data<T>(previous)},
      call.stream);
  const Tensor gates = gates_kept.numel() == 0 ? recomputed_gates<T>(call, previous) : gates_kept;
  const Tensor grad = channels_last_memory(grad_output);
  const Tensor d = call.empty({p.T, p.N, p.H, p.W, p.gates_kept() * K});
  const Optional rh = !p.cudnn && wanted[kWeightHh] ? Optional(call.empty(sizes(previous))) : std::nullopt;
  const Buffers<T> buffers{
      data<const T>(grad), data<const T>(previous), data<const T>(gates), data<T>(d),
      rh.has_value() ? data<T>(*rh) : nullptr};
  const Tensor grad_hx = run_backwards(call, buffers, wanted[kHx]);
  if (wanted[kHx]) gradients[kHx] = as_images(grad_hx, is_channels_last(*arguments.hx));
  collect<T>(call, d, previous, rh, wanted, gradients);
  return gradients;
}

#define CONVGRU_INSTANTIATE(T)    \
  template Gradients backward<T>( \
      const Call&, const Tensor&, const Tensor&, const Tensor&, const std::vector<bool>&);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cuda
