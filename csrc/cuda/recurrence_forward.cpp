#include <optional>

#include "library.h"
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
  convolved_ = channels_last_memory(convolution(x, *arguments.weight_ih));
}

template <class T>
Addends<T> OutsideGates<T>::addends(int64_t t) const {
  const Problem& p = call_.p;
  const int64_t width = 3 * p.K, image = full_maps_ ? p.pixels() * width : width;
  return {
      data_or_null<T>(call_.arguments.bias_ih),
      data_or_null<T>(call_.arguments.bias_hh),
      static_cast<int>((p.cudnn ? 2 : 3) * p.K),
      maps_.has_value() ? data<const T>(*maps_) + t * p.N * image : nullptr,
      p.pixels(),
      image,
      full_maps_ ? width : 0};
}

namespace {

// b_hn, which r multiplies in "cudnn".
template <class T>
const T* bias_hn(const Call& call) {
  const T* bias = data_or_null<T>(call.arguments.bias_hh);
  return bias == nullptr ? nullptr : bias + 2 * call.p.K;
}

// Where the states of the steps go. What the caller gets may be zero where a state stands still.
template <class T>
class States {
 public:
  States(const Call& call, const Tensor& outputs) : p_(call.p), outputs_(data<T>(outputs)) {
    if (p_.lengths != nullptr)
      for (Optional& state : carried_) state = call.empty({p_.state_size()});
  }
  T* state(int64_t i) const { return p_.lengths == nullptr ? output(i) : data<T>(*carried_[i % 2]); }
  T* output(int64_t i) const { return outputs_ + p_.time(i) * p_.state_size(); }

 private:
  const Problem& p_;
  T* outputs_;
  Optional carried_[2];
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
  const std::vector<int64_t> gates_shape =
      save_gates ? std::vector<int64_t>{p.T, p.N, p.H, p.W, width} : std::vector<int64_t>{0};
  if (p.all_rows() == 0) return {as_images(outputs, channels_last), call.empty(gates_shape)};

  // A single step convolves [x,h] at once.
  const Optional& weight_ih = arguments.weight_ih;
  const bool joined = p.T == 1 && !p.cudnn && weight_ih.has_value() && arguments.hx.has_value() &&
                      weight_ih->size(2) == weight_hh.size(2) && weight_ih->size(3) == weight_hh.size(3);
  const OutsideGates<T> outside(call, !joined);
  const States<T> states(call, outputs);
  const Optional hx = arguments.hx.has_value() ? Optional(channels_last_memory(*arguments.hx)) : std::nullopt;
  const T* h = data_or_null<T>(hx);
  const bool has_a = outside.convolved().has_value();
  // From convolution for all steps, or a state's worth.
  const auto step_of = [&](const Tensor& all, int64_t t) {
    const int64_t step = p.rows() * all.size(all.dim() - 1);
    return data<T>(all) + (all.numel() > step ? t * step : 0);
  };

  if (p.cudnn) {
    const PackedConvolution<T> U(call, {rows_of<T>(weight_hh, 0, 3 * K)}, 3 * K, 3 * K, /*cudnn=*/true);
    const Tensor gates = call.empty(gates_shape);
    for (int64_t i = 0; i < p.T; ++i) {
      const int64_t t = p.time(i);
      const CudnnStep<T> step{
          static_cast<int>(K),
          outside.addends(t),
          bias_hn<T>(call),
          has_a ? step_of(*outside.convolved(), t) : nullptr,
          save_gates ? step_of(gates, t) : nullptr,
          call.valid(t),
          h,
          states.state(i),
          states.output(i)};
      if (h == nullptr)
        without_sums(p.rows(), static_cast<int>(K), step, call.stream);
      else
        U.run(p.N, {source(h, K, K)}, step);
      h = states.state(i);
    }
    return {as_images(outputs, channels_last), gates};
  }

  // The gates overwrite what they receive from outside.
  const Tensor a = has_a ? *outside.convolved() : call.empty({save_gates ? p.T : 1, p.N, p.H, p.W, 3 * K});
  std::vector<WeightPart<T>> parts{rows_of<T>(weight_hh, 0, 2 * K)};
  Optional x;
  if (joined) {
    parts.insert(parts.begin(), rows_of<T>(*weight_ih, 0, 3 * K));
    x = valid_memory<T>(call, *arguments.input);
  }
  const PackedConvolution<T> U_rz(call, parts, (joined ? 3 : 2) * K, 2 * K);
  const PackedConvolution<T> U_n(call, {rows_of<T>(weight_hh, 2 * K, K)}, K, K);
  const Tensor rh = call.empty({p.state_size()});
  for (int64_t i = 0; i < p.T; ++i) {
    const int64_t t = p.time(i);
    const Addends<T> addends = outside.addends(t);
    T* a_t = step_of(a, t);
    const ResetUpdate<T> reset_update{static_cast<int>(K), addends, a_t, has_a, save_gates, h, data<T>(rh)};
    const Candidate<T> candidate{static_cast<int>(K), addends,       a_t, has_a || joined,
                                 save_gates,          call.valid(t), h,   states.state(i),
                                 states.output(i)};
    if (h == nullptr) {
      without_sums(p.rows(), static_cast<int>(2 * K), reset_update, call.stream);
      without_sums(p.rows(), static_cast<int>(K), candidate, call.stream);
    } else {
      std::vector<Source<T>> sources{source(h, K, K)};
      if (joined) sources.insert(sources.begin(), source(data<const T>(*x), x->size(4), x->size(4)));
      U_rz.run(p.N, sources, reset_update);
      U_n.run(p.N, {source(data<const T>(rh), K, K)}, candidate);
    }
    h = states.state(i);
  }
  return {
      as_images(outputs, channels_last), save_gates ? stable::view(a, gates_shape) : call.empty(gates_shape)};
}

template <class T>
Tensor recomputed_gates(const Call& call, const Tensor& previous) {
  const Problem& p = call.p;
  const int K = static_cast<int>(p.K);
  const int64_t images = p.T * p.N;
  const Tensor& weight_hh = call.weight_hh();
  const OutsideGates<T> outside(call, true);
  const T* h = data<const T>(previous);
  const Optional& a = outside.convolved();
  const Valid valid{nullptr, 0, 1};
  if (p.cudnn) {
    const Tensor gates = call.empty({p.T, p.N, p.H, p.W, 4 * p.K});
    const PackedConvolution<T> U(call, {rows_of<T>(weight_hh, 0, 3 * K)}, 3 * K, 3 * K, /*cudnn=*/true);
    const CudnnStep<T> step{
        K,      outside.addends(0), bias_hn<T>(call), data_or_null<T>(a), data<T>(gates), valid, h, nullptr,
        nullptr};
    U.run(images, {source(h, K, K)}, step);
    return gates;
  }
  const Tensor gates = a.has_value() ? *a : call.empty({images, p.H, p.W, 3 * p.K});
  const Tensor rh = call.empty({p.all_rows() * K});
  const PackedConvolution<T> U_rz(call, {rows_of<T>(weight_hh, 0, 2 * K)}, 2 * K, 2 * K);
  const PackedConvolution<T> U_n(call, {rows_of<T>(weight_hh, 2 * K, K)}, K, K);
  const ResetUpdate<T> reset_update{K, outside.addends(0), data<T>(gates), a.has_value(), true,
                                    h, data<T>(rh)};
  const Candidate<T> candidate{
      K, outside.addends(0), data<T>(gates), a.has_value(), true, valid, h, nullptr, nullptr};
  U_rz.run(images, {source(h, K, K)}, reset_update);
  U_n.run(images, {source(data<const T>(rh), K, K)}, candidate);
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
