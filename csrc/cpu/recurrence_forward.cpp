#include "recurrence.h"

namespace convgru::cpu {

template <class T>
OutsideGates<T>::OutsideGates(const Arguments& arguments, const Problem& p, int64_t steps)
    : p_(p),
      halo_(arguments.weight_ih.has_value() ? halo_of(*arguments.weight_ih) : 0),
      bias_(direct_bias(arguments)) {
  if (arguments.gate_bias.has_value()) maps_.emplace(*arguments.gate_bias, p.grid(), p.lengths);
  if (!arguments.input.has_value()) return;
  input_.emplace(*arguments.input, p.grid(), p.lengths);
  const Tensor& weight = *arguments.weight_ih;
  convolution_ = PackedConvolution<T>::forward({weight, 0, 3 * p.K}, p.extents(steps * p.N, weight), p.mode);
}

// The biases that add to the pre-activations directly, [3K]: all but the b_hn of "cudnn", which r multiplies.
// Empty if there are none.
template <class T>
std::vector<acc_t<T>> OutsideGates<T>::direct_bias(const Arguments& arguments) const {
  std::vector<acc_t<T>> sum = to_compute_type<T>(arguments.bias_ih);
  const std::vector<acc_t<T>> hidden = to_compute_type<T>(arguments.bias_hh);
  sum.resize(sum.empty() ? hidden.size() : sum.size());
  const size_t direct = p_.cudnn ? 2 * p_.K : 3 * p_.K;
  for (size_t k = 0; k < std::min(direct, hidden.size()); ++k) sum[k] += hidden[k];
  return sum;
}

template <class T>
auto OutsideGates<T>::addends(Schedule& schedule, int64_t first, int64_t steps, std::vector<After> after)
    -> StagedAddends {
  const acc_t<T>* bias = bias_.empty() ? nullptr : bias_.data();
  if (!maps_.has_value()) return {{bias, nullptr, 1, 0, 0}, kNoStage};
  const auto [maps, stage] =
      maps_->channels_last(first * p_.N, steps * p_.N, maps_buffer_, schedule, std::move(after));
  const bool full = maps_->pixels() == p_.pixels();
  const int64_t width = 3 * p_.K;
  return {{bias, maps, p_.pixels(), full ? p_.pixels() * width : width, full ? width : 0}, stage};
}

template <class T>
int OutsideGates<T>::add(Schedule& schedule, int64_t first, int64_t steps, const GateRows<T>& a) {
  const Kernels<T> kernels;
  const int64_t images = steps * p_.N;
  const auto [addends, addends_stage] = this->addends(schedule, first, steps, {});
  gates_ = {addends, a};
  const Epilogue<T> epilogue = kernels.gates.input_gates(gates_);
  if (!input_.has_value())
    return schedule.add(
        kernels.stage_without_sums(p_.grid(), images, 3 * p_.K, epilogue), {{addends_stage, 0}});
  const int64_t C = input_->channels();
  const auto [x, x_stage] = input_->channels_last(first * p_.N, images, input_buffer_, schedule, {});
  return schedule.add(
      convolution_->stage(images, one_source(x, C, C), epilogue), {{x_stage, halo_}, {addends_stage, 0}});
}

namespace {

// Where the states of the steps go. The kernels write channels last; the caller's output may be another
// format, and zero where a state stands still.
template <class T>
class States {
 public:
  States(const Tensor& output, bool channels_last, const Problem& p)
      : p_(p), channels_last_(channels_last), output_(data<T>(output)) {
    if (!channels_last || p.lengths != nullptr)
      for (int64_t i = 0; i < kept(); ++i) carried_[i] = Buffer<T>(p.state_size());
    if (!channels_last && p.lengths != nullptr) step_output_ = Buffer<T>(p.state_size());
  }

  // The memory of the i-th state, channels last.
  T* state(int64_t i) const { return carried_[0].get() == nullptr ? final(i) : carried_[i % kept()].get(); }
  // The memory of the i-th output, channels last: that of the state unless lengths are given.
  T* output(int64_t i) const {
    if (p_.lengths == nullptr) return state(i);
    return channels_last_ ? final(i) : step_output_.get();
  }
  // Adds what is to be done with the i-th output after `stage`, which writes it; kNoStage if nothing is.
  int finish(Schedule& schedule, int64_t i, int stage) const {
    if (channels_last_) return kNoStage;
    return schedule.add(
        from_channels_last<T>(p_.grid(), output(i), p_.K, p_.N, p_.K, false, final(i)), {{stage, 0}});
  }

 private:
  // The states that are there at a time: the next may take the place of the one before (Candidate) unless
  // convolutions still read that.
  int64_t kept() const { return p_.cudnn ? 2 : 1; }
  T* final(int64_t i) const { return output_ + p_.time(i) * p_.state_size(); }

  const Problem& p_;
  bool channels_last_;
  T* output_;
  Buffer<T> carried_[2];  // where states have no place in the output
  Buffer<T> step_output_;
};

// Where the rows of some images are in GateRows, and how many places there are.
struct TileOrder {
  std::vector<uint32_t> slots;
  int64_t size = 0;
};

template <class T>
TileOrder tile_order(const Grid& grid, int64_t images) {
  constexpr int64_t kSide = GateRows<T>::kTileSide;
  const int64_t tiles_h = (grid.height + kSide - 1) / kSide, tiles_w = (grid.width + kSide - 1) / kSide;
  TileOrder order;
  order.size = images * tiles_h * tiles_w * GateRows<T>::kTileRows;
  if (order.size > UINT32_MAX) return {};
  order.slots.reserve(images * grid.pixels());
  for (int64_t image = 0; image < images; ++image)
    for (int64_t y = 0; y < grid.height; ++y)
      for (int64_t x = 0; x < grid.width; ++x) {
        const int64_t tile = (image * tiles_h + y / kSide) * tiles_w + x / kSide;
        order.slots.push_back(static_cast<uint32_t>((tile * kSide + y % kSide) * kSide + x % kSide));
      }
  return order;
}

}  // namespace

template <class T>
std::tuple<Tensor, Tensor> forward(const Arguments& arguments, const Problem& p, bool save_gates) {
  using Convolution = PackedConvolution<T>;
  const Kernels<T> kernels;
  const Tensor& weight_hh = arguments.weight_hh;
  const Optional &input = arguments.input, &hx = arguments.hx;
  const bool channels_last = is_channels_last(arguments.images());
  const Tensor output = empty_images(weight_hh, {p.T, p.N, p.K, p.H, p.W}, channels_last);
  const int64_t width = p.gates_kept() * p.K;
  const std::vector<int64_t> gates_shape =
      save_gates ? std::vector<int64_t>{p.T, p.N, p.H, p.W, width} : std::vector<int64_t>{0};
  const Tensor gates = empty_tensor(weight_hh, gates_shape);
  if (p.all_rows() == 0) return {output, gates};

  const int64_t C = input.has_value() ? input->size(2) : 0;
  const RecurrencePlan plan = plan_recurrence(arguments, p, sizeof(T));
  const int64_t steps = plan.forward_steps;
  const bool joined = plan.joined;
  Arguments outside_arguments = arguments;
  if (joined) outside_arguments.input = std::nullopt;
  OutsideGates<T> outside(outside_arguments, p, steps);

  // "gru-rcn" overwrites a, what the gates receive from outside, by the gates.
  const bool a_is_kept = save_gates && !p.cudnn;
  const ConvolutionShape step = p.extents(p.N, weight_hh);

  const States<T> states(output, channels_last, p);
  Buffer<T> h_buffer, x_buffer;
  std::optional<Images<T>> initial;
  if (hx.has_value()) {
    initial.emplace(*hx, p.grid());
  } else {
    h_buffer = Buffer<T>(p.state_size());
    std::fill_n(h_buffer.get(), p.state_size(), T{});
  }
  const T* h = h_buffer.get();
  const int64_t halo = halo_of(weight_hh);
  const auto convolve = [&](int64_t i, const Convolution& convolution, const Input<T>& images, int64_t out,
                            const Epilogue<T>& epilogue) {
    if (i == 0 && !hx.has_value() && images.count == 1)
      return kernels.stage_without_sums(p.grid(), p.N, out, epilogue);
    return convolution.stage(p.N, images, epilogue);
  };
  // Of those that have been added, the stages that write the last state and that read it for the output.
  int state_stage, output_stage;
  // Calls f(schedule, i, t, a_t, outside) for every step, which adds its stages and returns that which writes
  // the state. outside: after which a_t is there. square_tiles: by which all convolutions of the steps go.
  const auto for_steps = [&](bool square_tiles, const auto& f) {
    TileOrder order;
    if (!a_is_kept && square_tiles && outside.in_tiles() && p.K > GateRows<T>::kRun)
      order = tile_order<T>(p.grid(), steps * p.N);
    const bool in_tiles = !order.slots.empty();
    const int64_t step_size = (in_tiles ? order.size / steps : p.rows()) * 3 * p.K;
    const Buffer<T> a_memory = a_is_kept ? Buffer<T>() : Buffer<T>(steps * step_size);
    for (int64_t begin = 0; begin < p.T;) {
      const int64_t end = joined ? p.T : std::min(begin + steps, p.T);
      const int64_t first = std::min(p.time(begin), p.time(end - 1));
      Schedule schedule(p.grid());
      state_stage = output_stage = kNoStage;
      if (begin == 0 && initial.has_value())
        std::tie(h, state_stage) = initial->channels_last(0, p.N, h_buffer, schedule, {});
      const GateRows<T> a{
          a_is_kept ? data<T>(gates) + first * step_size : a_memory.get(), p.K,
          in_tiles ? order.slots.data() : nullptr};
      const int outside_stage = joined ? kNoStage : outside.add(schedule, first, end - begin, a);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = p.time(i), in_chunk = joined && !a_is_kept ? 0 : t - first;
        const After outside_after{outside_stage, 0, in_chunk * p.N * p.H};
        const GateRows<T> a_t{a.data + in_chunk * step_size, p.K, a.slots};
        state_stage = f(schedule, i, t, a_t, outside_after);
        output_stage = states.finish(schedule, i, state_stage);
        h = states.state(i);
      }
      schedule.run();
      begin = end;
    }
  };

  if (p.cudnn) {
    const Convolution U = Convolution::cudnn(weight_hh, step, p.mode);
    const std::vector<acc_t<T>> b = to_compute_type<T>(arguments.bias_hh);
    const Buffer<T> gates_memory = save_gates ? Buffer<T>() : Buffer<T>(p.rows() * width);
    std::deque<CudnnStep<T>> arguments_of_steps;
    const auto add_step = [&](Schedule& schedule, int64_t i, int64_t t, const GateRows<T>& a_t,
                              const After& outside_after) {
      T* gates_t = save_gates ? data<T>(gates) + t * p.rows() * width : gates_memory.get();
      arguments_of_steps.push_back(
          {p.valid(t), a_t, b.empty() ? nullptr : b.data() + 2 * p.K, h, gates_t, save_gates, states.state(i),
           states.output(i)});
      return schedule.add(
          convolve(
              i, U, one_source(h, p.K, p.K), 3 * p.K, kernels.gates.cudnn_step(arguments_of_steps.back())),
          {outside_after, {state_stage, halo}, {output_stage, 0}});
    };
    for_steps(U.in_square_tiles(), add_step);
    return {output, gates};
  }

  const WeightRows rows_rz{weight_hh, 0, 2 * p.K}, rows_n{weight_hh, 2 * p.K, p.K};
  // Where W*x is joined, the convolutions are of [x, h] and [x, rh].
  const auto prepare = [&](const WeightRows& rows) {
    return joined ? Convolution::joined({*arguments.weight_ih, rows.first, rows.count}, rows, step, p.mode)
                  : Convolution::forward(rows, step, p.mode);
  };
  const Convolution U_rz = prepare(rows_rz), U_n = prepare(rows_n);
  const std::optional<Images<T>> x =
      joined ? std::optional<Images<T>>(std::in_place, *input, p.grid(), p.lengths) : std::nullopt;
  const Buffer<T> rh(p.state_size());
  std::deque<ResetUpdate<T>> reset_updates;
  std::deque<Candidate<T>> candidates;
  const auto add_step = [&](Schedule& schedule, int64_t i, int64_t t, const GateRows<T>& a_t,
                            const After& outside_after) {
    Input<T> first_images = one_source<T>(h, p.K, p.K), second_images = one_source<T>(rh.get(), p.K, p.K);
    std::vector<After> after{outside_after, {state_stage, halo}};
    Addends<T> addends{};
    if (joined) {
      const auto [x_t, x_stage] = x->channels_last(t * p.N, p.N, x_buffer, schedule, {{state_stage, halo}});
      const auto staged = outside.addends(schedule, t, 1, {{state_stage, 0}});
      addends = staged.addends;
      for (Input<T>* images : {&first_images, &second_images})
        *images = {{{x_t, C, C}, images->sources[0]}, 2};
      after.insert(after.end(), {{x_stage, halo}, {staged.stage, 0}});
    }
    reset_updates.push_back({a_t, save_gates, joined, addends, h, rh.get()});
    const Epilogue<T> first = kernels.gates.reset_update(reset_updates.back());
    const int reset_stage = schedule.add(convolve(i, U_rz, first_images, 2 * p.K, first), std::move(after));
    candidates.push_back(
        {p.relu, p.valid(t), a_t, save_gates, joined, addends, h, states.state(i), states.output(i)});
    const Epilogue<T> second = kernels.gates.candidate(candidates.back());
    return schedule.add(
        convolve(i, U_n, second_images, p.K, second), {{reset_stage, halo}, {output_stage, 0}});
  };
  for_steps(U_rz.in_square_tiles() && U_n.in_square_tiles(), add_step);
  return {output, gates};
}

#define CONVGRU_INSTANTIATE(T)    \
  template class OutsideGates<T>; \
  template std::tuple<Tensor, Tensor> forward<T>(const Arguments&, const Problem&, bool);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cpu
