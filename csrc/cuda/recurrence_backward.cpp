// The backward pass: the recurrence of the states' gradients step by step, which leaves the gradients d of
// all pre-activations; what they add to the gradients of input and parameters, for all steps at once.
#include <optional>

#include "recurrence.h"

namespace convgru::cuda {
namespace {

// The buffers of all steps, (T,N,H,W,.).
struct Buffers {
  Optional input;      // C, if its gradient or its weight's is wanted
  Tensor grad_output;  // K
  Tensor previous;     // K: the state before each step
  Tensor gates;
  Tensor d;           // 3K out: gradients of the pre-activations r|z|n
  Tensor hidden;      // those of what the hidden convolutions give: r|z, for "cudnn" r|z|q, out,
  Optional hidden_n;  // and n, K, out; not for "cudnn"
  Optional rh;        // K out: r.h, if anybody wants it
};

// Runs the recurrence backwards, which fills d, hidden and rh. Returns the gradient of the initial state,
// (N,H,W,K), if it is wanted.
template <class T>
Tensor run_backwards(const Call& call, const Buffers& buffers, bool wants_hx) {
  const Problem& p = call.p;
  const int64_t K = p.K;
  const int k = static_cast<int>(K);
  const Tensor carry = call.empty({p.N, p.H, p.W, K}), meet = meeting_place<T>(call);
  const BackwardSteps steps{p.T, p.reverse, call.arguments.hx.has_value(), wants_hx, p.rows()};
  const auto of = [&](const PreparedConvolution<T>& U, const Tensor& d) {
    return U.of(p.N, {source<T>(data<const T>(d), d.size(4), d.size(4))});
  };
  const T *grad_output = data<const T>(buffers.grad_output), *gates = data<const T>(buffers.gates);
  const T* previous = data<const T>(buffers.previous);
  T *d = data<T>(buffers.d), *hidden = data<T>(buffers.hidden), *const carried = data<T>(carry);

  if (p.cudnn) {
    PreparedConvolution<T> U(call, {0, 3 * K, true});
    const CudnnBackward<T> sequence{
        steps,
        {of(U, buffers.hidden)},
        {k, call.valid(0), grad_output, gates, previous, false, false, carried, d, hidden},
        data<unsigned>(meet)};
    run(call, sequence, {&U});
    return carry;
  }
  PreparedConvolution<T> U_rz(call, {0, 2 * K, true}), U_n(call, {2 * K, K, true});
  T* const rh = buffers.rh.has_value() ? data<T>(*buffers.rh) : nullptr;
  const GruRcnBackward<T> sequence{
      steps,
      {of(U_rz, buffers.hidden), of(U_n, *buffers.hidden_n)},
      {p.relu, k, call.valid(0), grad_output, gates, previous, false, false, carried, d, hidden,
       data<T>(*buffers.hidden_n)},
      {k, gates, previous, carried, d, hidden, rh},
      data<unsigned>(meet)};
  run(call, sequence, {&U_rz, &U_n});
  return carry;
}

Tensor sum(const Tensor& tensor, const std::vector<int64_t>& axes, bool keeps_axes) {
  return stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(axes), keeps_axes);
}

Tensor weight_gradient(const Tensor& d, const Tensor& x, const Tensor& weight) {
  return convolution_backward(flat_images(d), flat_images(x), weight, false, true).weight;
}

// Copies the gradient of a weight (O,I,kh,kw), which the library likes to give channels last, to contiguous
// memory; perhaps later.
template <class T>
void copy_weight(const Call& call, const Tensor& from, Tensor to) {
  if (!from.is_contiguous() && channels_last_view(from).is_contiguous())
    transpose_to<T>(call, to, from, from.size(2) * from.size(3), from.size(1));
  else
    stable::copy_(to, from);
}

template <class T>
Tensor contiguous_weight(const Call& call, const Tensor& weight) {
  if (weight.is_contiguous()) return weight;
  const Tensor copy = call.empty(sizes(weight));
  copy_weight<T>(call, weight, copy);
  return copy;
}

// The gradients of input and parameters.
template <class T>
void collect(
    const Call& call, const Buffers& buffers, const std::vector<bool>& wanted, Gradients& gradients) {
  const Problem& p = call.p;
  const Arguments& arguments = call.arguments;
  const int64_t K = p.K;
  const Tensor& d = buffers.d;
  if (buffers.input.has_value()) {
    const Tensor& x = *buffers.input;
    const ConvolutionGradients found = convolution_backward(
        flat_images(d), flat_images(x), *arguments.weight_ih, wanted[kInput], wanted[kWeightIh]);
    if (wanted[kInput])
      gradients[kInput] = as_images<T>(
          call, reshaped(channels_last_memory<T>(call, found.x), sizes(x)),
          is_channels_last(*arguments.input));
    if (wanted[kWeightIh]) gradients[kWeightIh] = contiguous_weight<T>(call, found.weight);
  }
  if (wanted[kGateBias]) {
    const Tensor& maps = *arguments.gate_bias;
    const bool full = maps.size(3) * maps.size(4) == p.pixels();
    gradients[kGateBias] =
        as_images<T>(call, full ? d : sum(d, {2, 3}, /*keeps_axes=*/true), is_channels_last(maps));
  }
  if (wanted[kBiasIh]) gradients[kBiasIh] = sum(d, {0, 1, 2, 3}, false);
  if (wanted[kBiasHh]) {
    const bool is_the_same = !p.cudnn && wanted[kBiasIh];
    gradients[kBiasHh] = is_the_same ? stable::clone(gradients[kBiasIh])
                                     : sum(p.cudnn ? buffers.hidden : d, {0, 1, 2, 3}, false);
  }
  if (!wanted[kWeightHh]) return;
  if (p.cudnn) {
    gradients[kWeightHh] =
        contiguous_weight<T>(call, weight_gradient(buffers.hidden, buffers.previous, arguments.weight_hh));
    return;
  }
  Tensor weight = arguments.weight_hh, gradient = new_tensor(weight, sizes(weight));
  const auto fill = [&](int64_t first, int64_t count, const Tensor& by, const Tensor& x) {
    const Tensor part = weight_gradient(by, x, stable::narrow(weight, 0, first, count));
    copy_weight<T>(call, part, stable::narrow(gradient, 0, first, count));
  };
  fill(0, 2 * K, buffers.hidden, buffers.previous);
  fill(2 * K, K, *buffers.hidden_n, *buffers.rh);
  gradients[kWeightHh] = gradient;
}

// The states before all steps, (T,N,H,W,K).
template <class T>
Tensor previous_states(const Call& call, const Tensor& output) {
  const Problem& p = call.p;
  const Tensor previous = call.empty({p.T, p.N, p.H, p.W, p.K});
  const Optional& first = call.arguments.hx;
  if (p.lengths != nullptr) {
    Optional hx;
    if (first.has_value()) hx = channels_last_memory<T>(call, *first);
    const Tensor states = channels_last_memory<T>(call, output);
    finish_transposes<T>(call);
    previous_states(
        PreviousStates<T>{
            p.T, p.N, p.pixels() * p.K, p.reverse, p.lengths, data<const T>(states), data_or_null<T>(hx),
            data<T>(previous)},
        call.stream);
    return previous;
  }
  // The initial one, then the outputs but the last of them.
  const int64_t start = p.time(0), after = p.reverse ? 0 : 1;
  Tensor initial = reshaped(previous, {p.N, p.H, p.W, p.K}, start * p.state_size());
  if (first.has_value())
    copy_channels_last<T>(call, *first, initial);
  else
    stable::zero_(initial);
  if (p.T == 1) return previous;
  Tensor outputs = output, others = previous;
  copy_channels_last<T>(
      call, stable::narrow(outputs, 0, 1 - after, p.T - 1), stable::narrow(others, 0, after, p.T - 1));
  return previous;
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
  for (size_t i = 0; i < gradients.size(); ++i)
    if (!wanted[i]) gradients[i] = call.empty({0});

  const int64_t K = p.K;
  const auto buffer = [&](int64_t channels) { return call.empty({p.T, p.N, p.H, p.W, channels}); };
  const Tensor previous = previous_states<T>(call, output);
  const Tensor gates = gates_kept.numel() == 0 ? recomputed_gates<T>(call, previous) : gates_kept;
  const bool reads_input = wanted[kInput] || wanted[kWeightIh];
  const Buffers buffers{
      reads_input ? Optional(valid_memory<T>(call, *arguments.input)) : std::nullopt,
      channels_last_memory<T>(call, grad_output),
      previous,
      gates,
      buffer(3 * K),
      buffer((p.cudnn ? 3 : 2) * K),
      p.cudnn ? std::nullopt : Optional(buffer(K)),
      !p.cudnn && wanted[kWeightHh] ? Optional(buffer(K)) : std::nullopt};
  const Tensor grad_hx = run_backwards<T>(call, buffers, wanted[kHx]);
  if (wanted[kHx]) gradients[kHx] = as_images<T>(call, grad_hx, is_channels_last(*arguments.hx));
  collect<T>(call, buffers, wanted, gradients);
  finish_transposes<T>(call);
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
