// The backward pass: the recurrence of the states' gradients step by step, which leaves the gradients d of
// all pre-activations; what they add to the gradients of input and parameters, for all steps at once.
#include <optional>

#include "library.h"
#include "recurrence.h"

namespace convgru::cuda {
namespace {

// All steps of the call, channels last.
template <class T>
struct Steps {
  const T* grad_output;  // (T,N,H,W,K)
  const T* previous;     // (T,N,H,W,K) the state before each step
  const T* gates;        // (T,N,H,W,width)
  T* d;   // (T,N,H,W,width) gradients of the pre-activations r|z|n, for "cudnn" also of q = U_n*h + b_hn
  T* rh;  // (T,N,H,W,K) r.h, or nullptr if nobody wants it
};

// The recurrence run backwards; the gradient of the state is carried from step to step.
template <class T>
class Carry {
 public:
  Carry(const Call& call, const Steps<T>& steps, bool wants_hx)
      : call_(call),
        p_(call.p),
        steps_(steps),
        K_(static_cast<int>(p_.K)),
        width_(p_.gates_kept() * p_.K),
        wants_hx_(wants_hx),
        carry_(stable::new_zeros(call.weight_hh(), {p_.N, p_.H, p_.W, p_.K})) {
    const Tensor& weight = call.weight_hh();
    const WeightPart<T> rz = transposed_rows_of<T>(weight, 0, 2 * K_);
    const WeightPart<T> n = transposed_rows_of<T>(weight, 2 * K_, K_);
    using Parts = std::vector<WeightPart<T>>;
    first_.emplace(call, p_.cudnn ? Parts{rz, n} : Parts{rz}, K_, K_);
    if (!p_.cudnn) second_.emplace(call, Parts{n}, K_, K_);
  }

  void run() {
    for (int64_t i = p_.T - 1; i >= 0; --i) p_.cudnn ? cudnn_step(i) : step(i);
    if (wants_hx_) first_->run(p_.N, d_of_next_, StoreSums<T>{data<T>(carry_), K_, true});
  }

  // The gradient of the initial state, (N,H,W,K), if it is wanted.
  const Tensor& hx_gradient() const { return carry_; }

 private:
  // What the step after i adds to the gradient of its state is the sum of a convolution, so step i begins in
  // that convolution's epilogue.
  template <template <class> class Epilogue>
  void begin_step(int64_t i, const Epilogue<T>& epilogue) {
    if (i == p_.T - 1)
      without_sums(p_.rows(), K_, epilogue, call_.stream);
    else
      first_->run(p_.N, d_of_next_, epilogue);
  }

  void step(int64_t i) {
    const int64_t t = p_.time(i), row = t * p_.rows();
    T *d = steps_.d + row * width_, *carry = data<T>(carry_);
    const T *gates = steps_.gates + row * width_, *h = steps_.previous + row * K_;
    begin_step(
        i, CandidateBackward<T>{K_, call_.valid(t), steps_.grad_output + row * K_, gates, h, carry, d});
    const ResetUpdateBackward<T> reset_update{
        K_, gates, h, carry, d, steps_.rh == nullptr ? nullptr : steps_.rh + row * K_};
    if (i == 0 && !call_.arguments.hx.has_value())  // before a zero state nothing flows further
      without_sums(p_.rows(), K_, reset_update, call_.stream);
    else
      second_->run(p_.N, {source<T>(d + 2 * K_, K_, width_)}, reset_update);
    d_of_next_ = {source<T>(d, 2 * K_, width_)};
  }

  void cudnn_step(int64_t i) {
    const int64_t t = p_.time(i), row = t * p_.rows();
    T* d = steps_.d + row * width_;
    begin_step(
        i, CudnnStepBackward<T>{
               K_, call_.valid(t), steps_.grad_output + row * K_, steps_.gates + row * width_,
               steps_.previous + row * K_, data<T>(carry_), d});
    d_of_next_ = {source<T>(d, 2 * K_, width_), source<T>(d + 3 * K_, K_, width_)};
  }

  const Call& call_;
  const Problem& p_;
  const Steps<T> steps_;
  const int K_;
  const int64_t width_;
  const bool wants_hx_;
  Tensor carry_;
  std::optional<PackedConvolution<T>> first_, second_;
  std::vector<Source<T>> d_of_next_;
};

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
  const Steps<T> steps{
      data<const T>(grad), data<const T>(previous), data<const T>(gates), data<T>(d),
      rh.has_value() ? data<T>(*rh) : nullptr};
  Carry<T> carry(call, steps, wanted[kHx]);
  carry.run();
  if (wanted[kHx]) gradients[kHx] = as_images(carry.hx_gradient(), is_channels_last(*arguments.hx));
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
