#include <optional>

#include "recurrence.h"

namespace convgru::cuda {

template <class T>
OutsideGates<T>::OutsideGates(const Call& call, bool convolves) : call_(call) {
  const Arguments& arguments = call.arguments;
  if (arguments.gate_bias.has_value()) {
    maps_ = valid_memory<T>(call, *arguments.gate_bias);
    full_maps_ = maps_->size(2) * maps_->size(3) == call.p.pixels();
  }
  if (!convolves || !arguments.input.has_value()) return;
  const Tensor x = flat_images(valid_memory<T>(call, *arguments.input));
  finish_transposes<T>(call);
  convolved_ = channels_last_memory<T>(call, convolution(x, *arguments.weight_ih));
}

template <class T>
Addends<T> OutsideGates<T>::addends() const {
  const Problem& p = call_.p;
  return {
      data_or_null<T>(call_.arguments.bias_ih),
      data_or_null<T>(call_.arguments.bias_hh),
      static_cast<int>((p.cudnn ? 2 : 3) * p.K),
      data_or_null<T>(maps_),
      static_cast<int>(p.pixels()),
      maps_image(),
      full_maps_ ? 3 * p.K : 0};
}

namespace {

// b_hn, which r multiplies in "cudnn".
template <class T>
const T* bias_hn(const Call& call) {
  const T* bias = data_or_null<T>(call.arguments.bias_hh);
  return bias == nullptr ? nullptr : bias + 2 * call.p.K;
}

// The states of a sequence besides those that the caller gets, which may be zero where a state stands still.
template <class T>
struct States {
  Optional hx, carried[2];

  explicit States(const Call& call) {
    if (call.arguments.hx.has_value()) hx = channels_last_memory<T>(call, *call.arguments.hx);
    if (call.p.lengths != nullptr)
      for (Optional& state : carried) state = call.empty({call.p.state_size()});
  }

  ForwardSteps<T> steps(
      const Problem& p, const Tensor& outputs, int64_t a, int64_t gates, int64_t maps) const {
    T* const first = carried[0].has_value() ? data<T>(*carried[0]) : nullptr;
    T* const second = carried[1].has_value() ? data<T>(*carried[1]) : nullptr;
    return {p.T,   p.reverse, data_or_null<T>(hx), data<T>(outputs), {first, second}, p.state_size(), a,
            gates, maps};
  }
};

}  // namespace

template <class T>
std::tuple<Tensor, Tensor> forward(const Call& call, bool save_gates) {
  const Problem& p = call.p;
  const Arguments& arguments = call.arguments;
  const Tensor& weight_hh = call.weight_hh();
  const int64_t K = p.K, width = p.gates_kept() * K;
  const bool channels_last = is_channels_last(arguments.images());
  const Tensor outputs = call.empty({p.T, p.N, p.H, p.W, K});
  const Shape gates_shape = save_gates ? Shape{p.T, p.N, p.H, p.W, width} : Shape{0};
  const auto shown = [&](const Tensor& memory) {
    const Tensor images = as_images<T>(call, memory, channels_last);
    finish_transposes<T>(call);
    return images;
  };
  if (p.all_rows() == 0) return {shown(outputs), call.empty(gates_shape)};

  // A single step convolves [x,h] at once, if that is left to us.
  const Optional& weight_ih = arguments.weight_ih;
  const bool joined = p.T == 1 && !p.cudnn && !prefers_library(call) && weight_ih.has_value() &&
                      arguments.hx.has_value() && weight_ih->size(2) == weight_hh.size(2) &&
                      weight_ih->size(3) == weight_hh.size(3);
  const OutsideGates<T> outside(call, !joined);
  const States<T> states(call);
  const Tensor meet = meeting_place<T>(call);
  const bool has_a = outside.convolved().has_value();
  const int k = static_cast<int>(K);

  if (p.cudnn) {
    PreparedConvolution<T> U(call, {0, 3 * K, false});
    const Tensor gates = call.empty(gates_shape);
    const CudnnForward<T> sequence{
        states.steps(p, outputs, outside.convolved_step(), p.rows() * width, outside.maps_step()),
        {U.of(p.N, {source<T>(nullptr, K, K)})},
        {k, outside.addends(), bias_hn<T>(call), has_a ? data<T>(*outside.convolved()) : nullptr,
         save_gates ? data<T>(gates) : nullptr, call.valid(0), nullptr, nullptr, nullptr},
        data<unsigned>(meet)};
    run(call, sequence, {&U});
    return {shown(outputs), gates};
  }

  // The gates overwrite what they receive from outside.
  const bool all_a = has_a || save_gates;
  const Tensor a = has_a ? *outside.convolved() : call.empty({all_a ? p.T : 1, p.N, p.H, p.W, 3 * K});
  std::vector<WeightPart<T>> parts{rows_of<T>(weight_hh, 0, 2 * K)};
  std::vector<Source<T>> sources{source<T>(nullptr, K, K)};
  Optional x;
  if (joined) {
    parts.insert(parts.begin(), rows_of<T>(*weight_ih, 0, 3 * K));
    x = valid_memory<T>(call, *arguments.input);
    sources.insert(sources.begin(), source(data<const T>(*x), x->size(4), x->size(4)));
  }
  PreparedConvolution<T> U_rz(call, {0, 2 * K, false}, parts, (joined ? 3 : 2) * K);
  PreparedConvolution<T> U_n(call, {2 * K, K, false});
  const Tensor rh = call.empty({p.state_size()});
  const GruRcnForward<T> sequence{
      states.steps(p, outputs, all_a ? p.rows() * 3 * K : 0, 0, outside.maps_step()),
      {U_rz.of(p.N, sources), U_n.of(p.N, {source(data<const T>(rh), K, K)})},
      {k, outside.addends(), data<T>(a), has_a, save_gates, nullptr, data<T>(rh)},
      {p.relu, k, outside.addends(), data<T>(a), has_a || joined, save_gates, call.valid(0), nullptr, nullptr,
       nullptr},
      data<unsigned>(meet)};
  run(call, sequence, {&U_rz, &U_n});
  return {shown(outputs), save_gates ? reshaped(a, gates_shape) : call.empty(gates_shape)};
}

template <class T>
Tensor recomputed_gates(const Call& call, const Tensor& previous) {
  const Problem& p = call.p;
  const int K = static_cast<int>(p.K);
  const int64_t images = p.T * p.N;
  const OutsideGates<T> outside(call, true);
  const T* h = data<const T>(previous);
  const Optional& a = outside.convolved();
  const Valid valid{nullptr, 0, 1};
  if (p.cudnn) {
    const Tensor gates = call.empty({p.T, p.N, p.H, p.W, 4 * p.K});
    PreparedConvolution<T> U(call, {0, 3 * K, false});
    const CudnnStep<T> step{K, outside.addends(), bias_hn<T>(call), data_or_null<T>(a), data<T>(gates), valid,
                            h, nullptr,           nullptr};
    prepare_weights<T>(call, {&U});
    U.run(Phase<T, CudnnStep<T>>{U.of(images, {source(h, K, K)}), false, step});
    return gates;
  }
  const Tensor gates = a.has_value() ? *a : call.empty({images, p.H, p.W, 3 * p.K});
  const Tensor rh = call.empty({p.all_rows() * K});
  PreparedConvolution<T> U_rz(call, {0, 2 * K, false});
  PreparedConvolution<T> U_n(call, {2 * K, K, false});
  const ResetUpdate<T> reset_update{K, outside.addends(), data<T>(gates), a.has_value(), true,
                                    h, data<T>(rh)};
  const Candidate<T> candidate{p.relu, K, outside.addends(), data<T>(gates), a.has_value(), true,
                               valid,  h, nullptr,           nullptr};
  prepare_weights<T>(call, {&U_rz, &U_n});
  U_rz.run(Phase<T, ResetUpdate<T>>{U_rz.of(images, {source(h, K, K)}), false, reset_update});
  U_n.run(Phase<T, Candidate<T>>{U_n.of(images, {source(data<const T>(rh), K, K)}), false, candidate});
  return gates;
}

#define CONVGRU_INSTANTIATE(T)                                     \
  template class OutsideGates<T>;                                  \
  template Tensor recomputed_gates<T>(const Call&, const Tensor&); \
  template std::tuple<Tensor, Tensor> forward<T>(const Call&, bool);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cuda
