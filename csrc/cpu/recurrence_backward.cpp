// The backward pass goes through the time steps chunk by chunk. A chunk's pre-activation gradients are turned
// into what they add to the gradients of input and parameters while they are in cache.
#include "recurrence.h"

namespace convgru::cpu {
namespace {

// The buffers of some consecutive time steps, channels last.
template <class T>
struct Chunk {
  int64_t begin, end;    // in the order of the recurrence
  int64_t first, steps;  // in time
  const T* grad_output;  // (steps,N,H,W,K)
  const T* previous;     // (steps,N,H,W,K) the state before each step
  const T* gates;        // (steps,N,H,W,width)
  T* d;   // (steps,N,H,W,width) gradients of the pre-activations r|z|n, for "cudnn" also of q = U_n*h + b_hn
  T* rh;  // (steps,N,H,W,K) r.h, or nullptr if nobody wants it
};

// The gates of a chunk, computed again from the states, all its steps at once: what forward saves.
template <class T>
class Recomputation {
  using Convolution = PackedConvolution<T>;

 public:
  Recomputation(const Arguments& arguments, const Problem& p, int64_t steps)
      : p_(p),
        outside_(arguments, p, steps),
        halo_(halo_of(arguments.weight_hh)),
        b_(to_compute_type<T>(arguments.bias_hh)),
        gates_(steps * p.rows() * p.gates_kept() * p.K),
        scratch_(steps * p.rows() * (p.cudnn ? 3 : 1) * p.K) {
    const ConvolutionShape extents = p.extents(steps * p.N, arguments.weight_hh);
    if (p.cudnn) {
      first_ = Convolution::cudnn(arguments.weight_hh, extents, p.mode);
    } else {
      first_ = Convolution::forward({arguments.weight_hh, 0, 2 * p.K}, extents, p.mode);
      second_ = Convolution::forward({arguments.weight_hh, 2 * p.K, p.K}, extents, p.mode);
    }
  }

  const T* run(const Chunk<T>& chunk) {
    const Kernels<T> kernels;
    const Valid valid{nullptr, 0, 1};
    const int64_t K = p_.K, images = chunk.steps * p_.N;
    const Input<T> h = one_source(chunk.previous, K, K);
    T* gates = gates_.get();
    const GateRows<T> a{p_.cudnn ? scratch_.get() : gates, K, nullptr};
    Schedule schedule(p_.grid());
    const int outside = outside_.add(schedule, chunk.first, chunk.steps, a);
    if (p_.cudnn) {
      const CudnnStep<T> step{
          valid, a, b_.empty() ? nullptr : b_.data() + 2 * K, chunk.previous, gates, true, nullptr, nullptr};
      schedule.add(first_->stage(images, h, kernels.gates.cudnn_step(step)), {{outside, 0}});
      schedule.run();
      return gates;
    }
    const ResetUpdate<T> reset_update{a, true, false, {}, chunk.previous, scratch_.get()};
    const int reset =
        schedule.add(first_->stage(images, h, kernels.gates.reset_update(reset_update)), {{outside, 0}});
    const Candidate<T> candidate{p_.relu, valid, a, true, false, {}, chunk.previous, nullptr, nullptr};
    schedule.add(
        second_->stage(images, one_source<T>(scratch_.get(), K, K), kernels.gates.candidate(candidate)),
        {{reset, halo_}});
    schedule.run();
    return gates;
  }

 private:
  Problem p_;
  OutsideGates<T> outside_;
  int64_t halo_;
  std::vector<acc_t<T>> b_;
  std::optional<Convolution> first_, second_;
  Buffer<T> gates_, scratch_;  // scratch: r.h, for "cudnn" what the gates receive from outside
};

// The recurrence run backwards, the gradient of the state carried from step to step.
template <class T>
class Carry {
  using Convolution = PackedConvolution<T>;

 public:
  Carry(const Arguments& arguments, const Problem& p, bool wants_hx)
      : p_(p),
        has_hx_(arguments.hx.has_value()),
        wants_hx_(wants_hx),
        width_(p.gates_kept() * p.K),
        halo_(halo_of(arguments.weight_hh)),
        carry_(p.state_size()) {
    const Tensor& weight = arguments.weight_hh;
    const ConvolutionShape step = p.extents(p.N, weight);
    const WeightRows rz{weight, 0, 2 * p.K}, n{weight, 2 * p.K, p.K};
    if (p.cudnn) {
      first_ = Convolution::transposed({rz, n}, step, p.mode);
    } else {
      first_ = Convolution::transposed({rz}, step, p.mode);
      second_ = Convolution::transposed({n}, step, p.mode);
    }
    std::fill_n(carry_.get(), p.state_size(), T{});
  }

  // Fills d and rh of a chunk; chunks come last first.
  void run(const Chunk<T>& chunk) {
    Schedule schedule(p_.grid());
    Steps steps{chunk, schedule};
    for (int64_t i = chunk.end - 1; i >= chunk.begin; --i) p_.cudnn ? cudnn_step(steps, i) : step(steps, i);
    schedule.run();
  }

  // The gradient of the initial state, (N,H,W,K), when the first chunk is done; if it is wanted.
  const T* hx_gradient() const { return carry_.get(); }

 private:
  // The steps of a chunk whose stages have been added, with the arguments of their epilogues.
  struct Steps {
    const Chunk<T>& chunk;
    Schedule& schedule;
    Input<T> d{};          // of the last, as the convolution sees it
    int stage = kNoStage;  // its last
    std::deque<CandidateBackward<T>> candidates{};
    std::deque<ResetUpdateBackward<T>> reset_updates{};
    std::deque<CudnnStepBackward<T>> cudnn_steps{};
    StoreSums<T> store{};
  };

  int64_t in_chunk(const Chunk<T>& chunk, int64_t i) const { return (p_.time(i) - chunk.first) * p_.rows(); }

  // What the step after i adds to the gradient of its state is the sum of a convolution, so step i begins in
  // that convolution's epilogue. Across chunks, whose buffers are not there at the same time, the sum is
  // added to the carry.
  void begin_step(Steps& steps, int64_t i, const Epilogue<T>& epilogue) {
    if (i == steps.chunk.end - 1)
      add(steps, kernels_.stage_without_sums(p_.grid(), p_.N, p_.K, epilogue));
    else
      add(steps, first_->stage(p_.N, steps.d, epilogue));
  }

  void end_step(Steps& steps, int64_t i, const Input<T>& d) {
    steps.d = d;
    if (i > steps.chunk.begin || (i == 0 && !wants_hx_)) return;
    steps.store = {carry_.get(), p_.K, carry_.get()};
    add(steps, first_->stage(p_.N, d, kernels_.gates.store_sums(steps.store)));
  }

  // Every stage reads what the one before it writes.
  void add(Steps& steps, Stage stage) {
    steps.stage = steps.schedule.add(std::move(stage), {{steps.stage, halo_}});
  }

  void step(Steps& steps, int64_t i) {
    const Chunk<T>& chunk = steps.chunk;
    const int64_t K = p_.K, row = in_chunk(chunk, i);
    T* d = chunk.d + row * width_;
    const T *gates = chunk.gates + row * width_, *h = chunk.previous + row * K;
    steps.candidates.push_back(
        {p_.relu, K, p_.valid(p_.time(i)), chunk.grad_output + row * K, gates, h, carry_.get(), d});
    begin_step(steps, i, kernels_.gates.candidate_backward(steps.candidates.back()));
    steps.reset_updates.push_back(
        {K, gates, h, carry_.get(), d, chunk.rh == nullptr ? nullptr : chunk.rh + row * K});
    const Epilogue<T> epilogue = kernels_.gates.reset_update_backward(steps.reset_updates.back());
    if (i == 0 && !has_hx_)  // before a zero state nothing flows further
      add(steps, kernels_.stage_without_sums(p_.grid(), p_.N, K, epilogue));
    else
      add(steps, second_->stage(p_.N, one_source<T>(d + 2 * K, K, width_), epilogue));
    end_step(steps, i, one_source<T>(d, 2 * K, width_));
  }

  void cudnn_step(Steps& steps, int64_t i) {
    const Chunk<T>& chunk = steps.chunk;
    const int64_t K = p_.K, row = in_chunk(chunk, i);
    T* d = chunk.d + row * width_;
    steps.cudnn_steps.push_back(
        {K, p_.valid(p_.time(i)), chunk.grad_output + row * K, chunk.gates + row * width_,
         chunk.previous + row * K, carry_.get(), d});
    begin_step(steps, i, kernels_.gates.cudnn_step_backward(steps.cudnn_steps.back()));
    end_step(steps, i, {{{d, 2 * K, width_}, {d + 3 * K, K, width_}}, 2});
  }

  Kernels<T> kernels_;
  Problem p_;
  bool has_hx_, wants_hx_;
  int64_t width_, halo_;
  Buffer<T> carry_;
  std::optional<Convolution> first_, second_;
};

// The gradients of input and parameters, collected chunk by chunk.
template <class T>
class Collection {
  using A = acc_t<T>;
  using Term = typename WeightGradients<T>::Term;

 public:
  Collection(
      const Arguments& arguments, const Problem& p, const std::vector<bool>& wanted, int64_t steps,
      Gradients& gradients)
      : p_(p), wanted_(wanted), gradients_(gradients), width_(p.gates_kept() * p.K) {
    const int64_t K = p.K, images = steps * p.N;
    const bool once = steps >= p.T;  // all in one chunk, whose buffers are there to the end
    if (arguments.input.has_value()) input_.emplace(*arguments.input, p.grid(), p.lengths);
    const auto like = [&](int i, const Tensor& argument) {
      gradients[i] = empty_images(argument, sizes(argument), is_channels_last(argument));
    };
    if (wanted[kInput]) {
      like(kInput, *arguments.input);
      const Tensor& weight = *arguments.weight_ih;
      grad_input_ = PackedConvolution<T>::transposed({{weight, 0, 3 * K}}, p.extents(images, weight), p.mode);
    }
    // Both weights share the work on d where their kernels are of the same size.
    const std::vector<Term> ih{{0, 0, 3 * K}};
    const std::vector<Term> hh{{0, 0, 2 * K}, {p.cudnn ? 0 : 1, n_from(), K}};
    std::vector<int64_t> hidden_channels(p.cudnn ? 1 : 2, K);
    const Optional& weight_ih = arguments.weight_ih;
    const Tensor& weight_hh = arguments.weight_hh;
    if (wanted[kWeightIh] && wanted[kWeightHh] && weight_ih->size(2) == weight_hh.size(2) &&
        weight_ih->size(3) == weight_hh.size(3)) {
      std::vector<Term> all = ih;
      for (const Term& term : hh) all.push_back({term.source + 1, term.first_out, term.out});
      hidden_channels.insert(hidden_channels.begin(), input_->channels());
      joint_.emplace(hidden_channels, width_, all, p.extents(images, weight_hh), once, p.mode);
    } else {
      if (wanted[kWeightIh])
        weight_ih_.emplace(
            std::vector<int64_t>{input_->channels()}, width_, ih, p.extents(images, *weight_ih), once,
            p.mode);
      if (wanted[kWeightHh])
        weight_hh_.emplace(hidden_channels, width_, hh, p.extents(images, weight_hh), once, p.mode);
    }
    for (const int i : {int(kWeightIh), int(kWeightHh)}) {
      if (!wanted[i]) continue;
      const Tensor& weight = i == kWeightIh ? *arguments.weight_ih : arguments.weight_hh;
      gradients[i] = empty_tensor(weight, sizes(weight));
    }
    if (wanted[kGateBias]) like(kGateBias, *arguments.gate_bias);
    if (wanted[kBiasIh] || wanted[kBiasHh]) bias_.resize(width_);
  }

  void add(const Chunk<T>& chunk) {
    const int64_t K = p_.K, images = chunk.steps * p_.N;
    if (wanted_[kInput]) {
      // Where the images lie as the caller wants them the convolution writes to their place.
      const int64_t C = input_->channels(), size = C * p_.pixels();
      const bool channels_last = is_channels_last(gradients_[kInput]);
      T* target = data<T>(gradients_[kInput]) + chunk.first * p_.N * size;
      if (!channels_last && grad_input_buffer_.get() == nullptr)
        grad_input_buffer_ = Buffer<T>(images * size);
      const StoreSums<T> store{channels_last ? target : grad_input_buffer_.get(), C, nullptr};
      Schedule schedule(p_.grid());
      const int stored = schedule.add(
          grad_input_->stage(images, one_source<T>(chunk.d, 3 * K, width_), kernels_.gates.store_sums(store)),
          {});
      if (!channels_last)
        schedule.add(
            from_channels_last<T>(p_.grid(), grad_input_buffer_.get(), C, images, C, false, target),
            {{stored, 0}});
      schedule.run();
    }
    std::vector<Source<T>> x, h{{chunk.previous, K, K}};
    if (wanted_[kWeightIh])
      x = {
          {input_->channels_last(chunk.first * p_.N, images, input_buffer_), input_->channels(),
           input_->channels()}};
    if (!p_.cudnn) h.push_back({chunk.rh, K, K});
    const Source<T> d{chunk.d, width_, width_};
    if (weight_ih_.has_value()) weight_ih_->add(images, x, d);
    if (weight_hh_.has_value()) weight_hh_->add(images, h, d);
    if (joint_.has_value()) {
      x.insert(x.end(), h.begin(), h.end());
      joint_->add(images, x, d);
    }
    if (!bias_.empty()) {
      constexpr int64_t kColumns = 32;  // that a thread takes at a time
      const int64_t rows = chunk.steps * p_.rows();
      stable::parallel_for(0, (width_ + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
        kernels_.gates.sum_rows(
            begin * kColumns, std::min(end * kColumns, width_), rows, width_, chunk.d, bias_.data());
      });
    }
    if (wanted_[kGateBias]) add_gate_bias(chunk);
  }

  // Stores what was summed up.
  void finish() {
    const int64_t K = p_.K;
    if (wanted_[kWeightIh])
      (joint_.has_value() ? joint_ : weight_ih_)->finish(0, data<T>(gradients_[kWeightIh]));
    if (wanted_[kWeightHh]) {
      const Tensor& gradient = gradients_[kWeightHh];
      const int first = joint_.has_value() ? 1 : 0;
      const WeightGradients<T>& sums = joint_.has_value() ? *joint_ : *weight_hh_;
      sums.finish(first, data<T>(gradient));
      sums.finish(first + 1, data<T>(gradient) + gradient.numel() / 3 * 2);
    }
    for (const int i : {int(kBiasIh), int(kBiasHh)}) {
      if (!wanted_[i]) continue;
      const int64_t n = i == kBiasHh ? n_from() : 2 * K;
      T* gradient = data<T>(gradients_[i]);
      for (int64_t k = 0; k < 3 * K; ++k) narrow(bias_[k < 2 * K ? k : n + k - 2 * K], gradient[k]);
    }
  }

 private:
  // Where in d the gradient of U_n's output is: of "cudnn" q's, which r has multiplied.
  int64_t n_from() const { return (p_.cudnn ? 3 : 2) * p_.K; }

  void add_gate_bias(const Chunk<T>& chunk) {
    const Tensor& gradient = gradients_[kGateBias];
    const int64_t width = 3 * p_.K, images = chunk.steps * p_.N, pixels = p_.pixels();
    if (gradient.size(3) * gradient.size(4) == pixels)
      return run_stage(
          from_channels_last<T>(
              p_.grid(), chunk.d, width_, images, width, is_channels_last(gradient),
              data<T>(gradient) + chunk.first * p_.N * pixels * width));
    T* target = data<T>(gradient) + chunk.first * p_.N * width;
    const int64_t grain = std::max<int64_t>(1, kPieceElements / (pixels * width));
    stable::parallel_for(0, images, grain, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(width);
      for (int64_t image = begin; image < end; ++image) {
        std::fill(sums.begin(), sums.end(), A(0));
        kernels_.gates.sum_rows(0, width, pixels, width_, chunk.d + image * pixels * width_, sums.data());
        for (int64_t k = 0; k < width; ++k) narrow(sums[k], target[image * width + k]);
      }
    });
  }

  Kernels<T> kernels_;
  const Problem& p_;
  const std::vector<bool>& wanted_;
  Gradients& gradients_;
  int64_t width_;
  std::optional<Images<T>> input_;
  std::optional<PackedConvolution<T>> grad_input_;
  std::optional<WeightGradients<T>> weight_ih_, weight_hh_, joint_;
  std::vector<A> bias_;
  Buffer<T> grad_input_buffer_, input_buffer_;
};

// The states before the steps of a chunk. At steps past a sample's length it is whatever it is: no gradient
// passes there.
template <class T>
std::vector<Image<T>> previous_states(
    const Chunk<T>& chunk, const Images<T>& output, const std::optional<Images<T>>& hx, const Problem& p) {
  std::vector<Image<T>> images;
  for (int64_t t = chunk.first; t < chunk.first + chunk.steps; ++t)
    for (int64_t n = 0; n < p.N; ++n) {
      const int64_t before = p.reverse ? t + 1 : t - 1;
      if (!p.starts(t, n) && before >= 0 && before < p.T)
        images.push_back(output[before * p.N + n]);
      else
        images.push_back(hx.has_value() ? (*hx)[n] : Image<T>{});
    }
  return images;
}

}  // namespace

template <class T>
Gradients backward(
    const Tensor& grad_output, const Arguments& arguments, const Tensor& output, const Tensor& gates_kept,
    const Problem& p, const std::vector<bool>& wanted) {
  // Without a step the state is the initial one, but no output depends on it.
  if (p.all_rows() == 0) return zero_gradients(arguments, wanted);
  Gradients gradients;
  for (Tensor& gradient : gradients) gradient = new_tensor(grad_output, {0});
  if (wanted[kBiasIh]) gradients[kBiasIh] = new_tensor(*arguments.bias_ih, {3 * p.K});
  if (wanted[kBiasHh]) gradients[kBiasHh] = new_tensor(*arguments.bias_hh, {3 * p.K});

  const int64_t K = p.K, width = p.gates_kept() * K;
  const int64_t steps = plan_recurrence(arguments, p, sizeof(T)).backward_steps;
  const int64_t rows = steps * p.rows();
  const Images<T> output_images(output, p.grid()), grad_images(grad_output, p.grid());
  std::optional<Images<T>> hx_images;
  if (arguments.hx.has_value()) hx_images.emplace(*arguments.hx, p.grid());
  std::optional<Recomputation<T>> recomputation;
  if (gates_kept.numel() == 0) recomputation.emplace(arguments, p, steps);
  Carry<T> carry(arguments, p, wanted[kHx]);
  Collection<T> collection(arguments, p, wanted, steps, gradients);
  Buffer<T> grad_buffer;
  const Buffer<T> previous(rows * K), d(rows * width);
  const Buffer<T> rh = !p.cudnn && wanted[kWeightHh] ? Buffer<T>(rows * K) : Buffer<T>();

  for (int64_t end = p.T; end > 0; end -= steps) {
    const int64_t begin = std::max<int64_t>(0, end - steps);
    Chunk<T> chunk{begin,       end,     std::min(p.time(begin), p.time(end - 1)),
                   end - begin, nullptr, previous.get(),
                   nullptr,     d.get(), rh.get()};
    chunk.grad_output = grad_images.channels_last(chunk.first * p.N, chunk.steps * p.N, grad_buffer);
    run_stage(to_channels_last(
        p.grid(), previous_states(chunk, output_images, hx_images, p), K, p.pixels(), previous.get()));
    chunk.gates = recomputation.has_value() ? recomputation->run(chunk)
                                            : data<T>(gates_kept) + chunk.first * p.rows() * width;
    carry.run(chunk);
    collection.add(chunk);
  }
  collection.finish();
  if (wanted[kHx]) {
    const bool channels_last = is_channels_last(*arguments.hx);
    gradients[kHx] = empty_images(*arguments.hx, sizes(*arguments.hx), channels_last);
    run_stage(
        from_channels_last(p.grid(), carry.hx_gradient(), K, p.N, K, channels_last, data<T>(gradients[kHx])));
  }
  return gradients;
}

#define CONVGRU_INSTANTIATE(T)                                                       \
  template Gradients backward<T>(                                                    \
      const Tensor&, const Arguments&, const Tensor&, const Tensor&, const Problem&, \
      const std::vector<bool>&);
CONVGRU_INSTANTIATE(float)
CONVGRU_INSTANTIATE(double)
CONVGRU_INSTANTIATE(bfloat16)
CONVGRU_INSTANTIATE(float16)

}  // namespace convgru::cpu
