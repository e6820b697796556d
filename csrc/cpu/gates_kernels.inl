// The kernels of gates.h; compiled once for each instruction set, in the namespace CONVGRU_ISA.
#include "gates.h"
#include "transpose.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// An epilogue's function from one that works on one pixel: f(arguments, pixel, channel, channels, c).
template <
    class T, class Arguments, void (*kPixel)(const Arguments&, int64_t, int64_t, int64_t, const acc_t<T>*)>
void apply(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  const Arguments& args = *static_cast<const Arguments*>(arguments);
  for (int64_t i = 0; i < count; ++i) kPixel(args, pixels[i], channel, channels, c + i * stride);
}

template <
    class T, class Arguments, void (*kPixel)(const Arguments&, int64_t, int64_t, int64_t, const acc_t<T>*)>
Epilogue<T> epilogue(const Arguments& arguments) {
  return {apply<T, Arguments, kPixel>, &arguments};
}

template <class T>
void store_sums(
    const StoreSums<T>& args, int64_t pixel, int64_t channel, int64_t channels, const acc_t<T>* c) {
  T* y = args.y + pixel * args.pixel_stride + channel;
  const T* add = args.add == nullptr ? nullptr : args.add + pixel * args.pixel_stride + channel;
  for_lanes<acc_t<T>>(channels, [&](int64_t k, auto lanes) {
    const auto sum = load(c + k, lanes);
    store(y + k, add == nullptr ? sum : sum + load(add + k, lanes), lanes);
  });
}

// Pixels whose vectors are worked on side by side, where they follow each other.
template <class A>
constexpr int kGroup = sizeof(A) == sizeof(float) ? 4 : 1;

// The same channels of kCount pixels, whose rows are `step` elements apart.
template <class T, int kCount>
struct PixelRows {
  using Vecs = Group<Vec<acc_t<std::remove_const_t<T>>>, kCount>;
  T* first;
  int64_t step;

  template <class L>
  CONVGRU_INLINE Vecs load(int64_t k, L lanes) const {
    return Vecs::each([&](int i) { return CONVGRU_ISA::load(first + i * step + k, lanes); });
  }
  template <class L>
  CONVGRU_INLINE void store(int64_t k, const Vecs& value, L lanes) const {
    for (int i = 0; i < kCount; ++i) CONVGRU_ISA::store(first + i * step + k, value.v[i], lanes);
  }
};

// Calls f(i, n) for all `count` pixels: for the n from the i-th on. n is kGroup where whole vectors of
// channels count and those pixels follow each other, also in the rows of `gates` and, if `sample` is not 0,
// in a sample of that many pixels; else 1.
template <class T, class F>
CONVGRU_INLINE void for_groups(
    const GateRows<T>& gates, const int64_t* pixels, int64_t count, int64_t channels, int64_t sample,
    const F& f) {
  constexpr int n = kGroup<acc_t<T>>;
  const auto together = [&](int64_t i) {
    const int64_t first = pixels[i], last = pixels[i + n - 1];
    return last == first + n - 1 && gates.together(first, last) &&
           (sample == 0 || first % sample + n <= sample);
  };
  const bool whole = channels % kLanes<acc_t<T>> == 0;
  for (int64_t i = 0; i < count;) {
    if (n > 1 && whole && i + n <= count && together(i)) {
      f(i, std::integral_constant<int, n>{});
      i += n;
    } else {
      f(i, std::integral_constant<int, 1>{});
      ++i;
    }
  }
}

// for_lanes, for the channels of such pixels.
template <class A, int kCount, class F>
CONVGRU_INLINE void for_lanes_of(int64_t count, const F& f) {
  if constexpr (kCount == 1)
    for_lanes<A>(count, f);
  else
    for (int64_t first = 0; first < count; first += kLanes<A>) f(first, Full{});
}

// The addends of pixels of a sample that follow each other, for the channels [channel, ...).
template <class T, int kCount>
struct PixelAddends {
  using Vecs = Group<Vec<acc_t<T>>, kCount>;
  const acc_t<T>* bias;
  PixelRows<const T, kCount> map;

  PixelAddends(const Addends<T>& addends, int64_t pixel, int64_t channel)
      : bias(addends.bias == nullptr ? nullptr : addends.bias + channel),
        map{addends.maps, addends.pixel_stride} {
    if (addends.maps != nullptr)
      map.first += pixel / addends.pixels * addends.image_stride +
                   pixel % addends.pixels * addends.pixel_stride + channel;
  }

  template <class L>
  CONVGRU_INLINE Vecs operator()(Vecs c, int64_t k, L lanes) const {
    if (bias != nullptr) c = c + load(bias + k, lanes);
    if (map.first != nullptr) c = c + map.load(k, lanes);
    return c;
  }
};

// Calls f(gate, hidden, count, offset) for each part of the channels [channel, channel+channels) of the gates
// r, z and n that belongs to one gate; offset: from the first of the channels.
template <class F>
inline void for_gates(int64_t K, int64_t channel, int64_t channels, const F& f) {
  for (int64_t offset = 0; offset < channels;) {
    const int64_t gate = (channel + offset) / K, hidden = (channel + offset) % K;
    const int64_t count = K - hidden < channels - offset ? K - hidden : channels - offset;
    f(gate, hidden, count, offset);
    offset += count;
  }
}

template <class T>
void input_gates(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  using A = acc_t<T>;
  const InputGates<T> args = *static_cast<const InputGates<T>*>(arguments);
  const GateRows<T> gates = args.a;
  for_gates(gates.K, channel, channels, [&](int64_t gate, int64_t hidden, int64_t some, int64_t offset) {
    const int64_t place = gates.offset(gate, hidden), step = gates.step();
    const auto kernel = [&](int64_t i, auto group) __attribute__((always_inline)) {
      constexpr int n = group;
      const PixelRows<const A, n> sums{c + i * stride + offset, stride};
      const PixelRows<T, n> a{gates.at(pixels[i]) + place, step};
      const PixelAddends<T, n> addends(args.addends, pixels[i], channel + offset);
      for_lanes_of<A, n>(some, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
        a.store(k, addends(sums.load(k, lanes), k, lanes), lanes);
      });
    };
    for_groups(gates, pixels, count, some, args.addends.sample(), kernel);
  });
}

template <class T>
Epilogue<T> input_gates_epilogue(const InputGates<T>& args) {
  return {input_gates<T>, &args};
}

// `some` channels from `hidden` on of one gate.
template <class T, bool kJoined, int kGate>
void reset_update_gate(
    const ResetUpdate<T>& args, const int64_t* pixels, int64_t count, int64_t hidden, int64_t some,
    const acc_t<T>* c, int64_t stride) {
  using A = acc_t<T>;
  const GateRows<T> gates = args.a;
  const int64_t K = gates.K, place = gates.offset(kGate, hidden), gates_step = gates.step();
  const bool keep = kGate > 0 || args.keep;
  const T* const h_rows = args.h + hidden;
  T* const rh_rows = args.rh + hidden;
  const Addends<T> all_addends = args.addends;
  const auto kernel = [&](int64_t i, auto group) __attribute__((always_inline)) {
    constexpr int n = group;
    const int64_t pixel = pixels[i];
    const PixelRows<const A, n> sums{c + i * stride, stride};
    const PixelRows<T, n> a{gates.at(pixel) + place, gates_step}, rh{rh_rows + pixel * K, K};
    const PixelRows<const T, n> h{h_rows + pixel * K, K};
    const PixelAddends<T, n> addends(all_addends, pixel, kGate * K + hidden);
    for_lanes_of<A, n>(some, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
      auto sum = sums.load(k, lanes);
      if constexpr (kJoined)
        sum = addends(sum, k, lanes);
      else
        sum = sum + a.load(k, lanes);
      const auto s = sigmoid(sum);
      if (keep) a.store(k, s, lanes);
      if constexpr (kGate == 0) rh.store(k, s * h.load(k, lanes), lanes);
    });
  };
  for_groups(gates, pixels, count, some, kJoined ? all_addends.sample() : 0, kernel);
}

template <class T, bool kJoined>
void reset_update(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  const ResetUpdate<T>& args = *static_cast<const ResetUpdate<T>*>(arguments);
  for_gates(args.a.K, channel, channels, [&](int64_t gate, int64_t hidden, int64_t some, int64_t offset) {
    const auto kernel = gate == 0 ? reset_update_gate<T, kJoined, 0> : reset_update_gate<T, kJoined, 1>;
    kernel(args, pixels, count, hidden, some, c + offset, stride);
  });
}

template <class T>
Epilogue<T> reset_update_epilogue(const ResetUpdate<T>& args) {
  return {args.joined ? reset_update<T, true> : reset_update<T, false>, &args};
}

// What a sample's state and output are past its length.
template <class T>
void stand_still(int64_t count, const T* h, T* state, T* output) {
  if (state != h) memcpy(state, h, count * sizeof(T));
  for (int64_t k = 0; k < count; ++k) output[k] = T{};
}

template <class T, bool kJoined, bool kRelu>
void candidate(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  using A = acc_t<T>;
  const Candidate<T> args = *static_cast<const Candidate<T>*>(arguments);
  const GateRows<T> gates = args.a;
  const int64_t K = gates.K, gates_step = gates.step();
  const int64_t z_place = gates.offset(1, channel), n_place = gates.offset(2, channel);
  const Addends<T> all_addends = args.addends;
  const auto kernel = [&](int64_t i, auto group) __attribute__((always_inline)) {
    constexpr int n = group;
    const int64_t pixel = pixels[i], row = pixel * K + channel;
    T* const gates_row = gates.at(pixel);
    const PixelRows<const A, n> sums{c + i * stride, stride};
    const PixelRows<const T, n> z{gates_row + z_place, gates_step}, h{args.h + row, K};
    const PixelRows<T, n> candidate{gates_row + n_place, gates_step};
    const PixelAddends<T, n> addends(all_addends, pixel, 2 * K + channel);
    const bool advance = args.state != nullptr && args.valid(pixel);
    const PixelRows<T, n> state{args.state == nullptr ? nullptr : args.state + row, K};
    const PixelRows<T, n> output{args.state == nullptr ? nullptr : args.output + row, K};
    for_lanes_of<A, n>(channels, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
      auto sum = sums.load(k, lanes);
      if constexpr (kJoined)
        sum = addends(sum, k, lanes);
      else
        sum = sum + candidate.load(k, lanes);
      const auto value = kRelu ? relu(sum) : tanh(sum);
      if (args.keep) candidate.store(k, value, lanes);
      if (!advance) return;
      const auto next = blend(h.load(k, lanes), value, z.load(k, lanes));
      state.store(k, next, lanes);
      if (args.output != args.state) output.store(k, next, lanes);
    });
    if (args.state != nullptr && !advance)
      for (int pixel = 0; pixel < n; ++pixel)
        stand_still(channels, h.first + pixel * K, state.first + pixel * K, output.first + pixel * K);
  };
  const int64_t sample = kJoined && all_addends.maps != nullptr ? all_addends.pixels : args.valid.sample();
  for_groups(gates, pixels, count, channels, sample, kernel);
}

template <class T>
Epilogue<T> candidate_epilogue(const Candidate<T>& args) {
  if (args.relu) return {args.joined ? candidate<T, true, true> : candidate<T, false, true>, &args};
  return {args.joined ? candidate<T, true, false> : candidate<T, false, false>, &args};
}

// `some` channels from `hidden` on of one gate.
template <class T>
void cudnn_step_gate(
    const CudnnStep<T>& args, const int64_t* pixels, int64_t count, int64_t gate, int64_t hidden,
    int64_t some, const acc_t<T>* c, int64_t stride) {
  using A = acc_t<T>;
  const GateRows<T> a_rows = args.a;
  const int64_t K = a_rows.K, place = a_rows.offset(gate, hidden), a_step = a_rows.step();
  const A* const b = args.b == nullptr ? nullptr : args.b + hidden;
  const auto kernel = [&](int64_t i, auto group) __attribute__((always_inline)) {
    constexpr int n = group;
    const int64_t pixel = pixels[i], row = pixel * K + hidden;
    const PixelRows<const A, n> sums{c + i * stride, stride};
    const PixelRows<const T, n> a{a_rows.at(pixel) + place, a_step}, h{args.h + row, K};
    const PixelRows<T, n> gates{args.gates + pixel * 4 * K + hidden, 4 * K};
    if (gate < 2) {
      for_lanes_of<A, n>(some, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
        gates.store(gate * K + k, sigmoid(a.load(k, lanes) + sums.load(k, lanes)), lanes);
      });
      return;
    }
    const bool advance = args.state != nullptr && args.valid(pixel);
    const PixelRows<T, n> state{args.state == nullptr ? nullptr : args.state + row, K};
    const PixelRows<T, n> output{args.state == nullptr ? nullptr : args.output + row, K};
    for_lanes_of<A, n>(some, [&](int64_t k, auto lanes) __attribute__((always_inline)) {
      auto q = sums.load(k, lanes);
      if (b != nullptr) q = q + load(b + k, lanes);
      const auto value = tanh(a.load(k, lanes) + gates.load(k, lanes) * q);
      if (args.keep) {
        gates.store(2 * K + k, value, lanes);
        gates.store(3 * K + k, q, lanes);
      }
      if (!advance) return;
      const auto next = blend(value, h.load(k, lanes), gates.load(K + k, lanes));
      state.store(k, next, lanes);
      if (args.output != args.state) output.store(k, next, lanes);
    });
    if (args.state != nullptr && !advance)
      for (int pixel = 0; pixel < n; ++pixel)
        stand_still(some, h.first + pixel * K, state.first + pixel * K, output.first + pixel * K);
  };
  for_groups(a_rows, pixels, count, some, args.valid.sample(), kernel);
}

template <class T>
void cudnn_step(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  const CudnnStep<T>& args = *static_cast<const CudnnStep<T>*>(arguments);
  while (channels > 0) {
    const CudnnChannel place = cudnn_channel(channel, args.a.K);
    const int64_t run = place.run < channels ? place.run : channels;
    cudnn_step_gate(args, pixels, count, place.gate, place.hidden, run, c, stride);
    channel += run;
    channels -= run;
    c += run;
  }
}

template <class T>
Epilogue<T> cudnn_step_epilogue(const CudnnStep<T>& args) {
  return {cudnn_step<T>, &args};
}

// carry <- carry + c: a step past the sample's length passes the gradient of its state on.
template <class T>
void pass_on(int64_t count, const acc_t<T>* c, T* carry) {
  for_lanes<acc_t<T>>(count, [&](int64_t k, auto lanes) {
    store(carry + k, load(carry + k, lanes) + load(c + k, lanes), lanes);
  });
}

template <class T>
void zero(int64_t count, T* x) {
  for (int64_t k = 0; k < count; ++k) x[k] = T{};
}

template <class T>
void candidate_backward(
    const CandidateBackward<T>& args, int64_t pixel, int64_t channel, int64_t channels, const acc_t<T>* c) {
  using A = acc_t<T>;
  const int64_t K = args.K, row = pixel * K + channel, gates_row = pixel * 3 * K + channel;
  T* d_z = args.d + gates_row + K;
  T* d_n = d_z + K;
  T* carry = args.carry + row;
  if (!args.valid(pixel)) {
    pass_on(channels, c, carry);
    zero(channels, d_z);
    zero(channels, d_n);
    return;
  }
  const T* z_row = args.gates + gates_row + K;
  const T* n_row = z_row + K;
  const T* grad = args.grad_output + row;
  const T* h = args.h + row;
  for_lanes<A>(channels, [&](int64_t k, auto lanes) {
    const Vec<A> z = load(z_row + k, lanes), n = load(n_row + k, lanes);
    const Vec<A> dh = load(grad + k, lanes) + load(carry + k, lanes) + load(c + k, lanes);
    store(d_z + k, dh * (n - load(h + k, lanes)) * sigmoid_derivative(z), lanes);
    store(d_n + k, candidate_gradient(args.relu, dh * z, n), lanes);
    store(carry + k, dh * (1 - z), lanes);
  });
}

template <class T>
void reset_update_backward(
    const ResetUpdateBackward<T>& args, int64_t pixel, int64_t channel, int64_t channels, const acc_t<T>* c) {
  using A = acc_t<T>;
  const int64_t row = pixel * args.K + channel, gates_row = pixel * 3 * args.K + channel;
  const T* r_row = args.gates + gates_row;
  const T* h_row = args.h + row;
  T* carry = args.carry + row;
  T* d_r = args.d + gates_row;
  T* rh = args.rh == nullptr ? nullptr : args.rh + row;
  for_lanes<A>(channels, [&](int64_t k, auto lanes) {
    const Vec<A> r = load(r_row + k, lanes), g = load(c + k, lanes), h = load(h_row + k, lanes);
    store(d_r + k, g * h * sigmoid_derivative(r), lanes);
    store(carry + k, load(carry + k, lanes) + g * r, lanes);
    if (rh != nullptr) store(rh + k, r * h, lanes);
  });
}

template <class T>
void cudnn_step_backward(
    const CudnnStepBackward<T>& args, int64_t pixel, int64_t channel, int64_t channels, const acc_t<T>* c) {
  using A = acc_t<T>;
  const int64_t K = args.K, row = pixel * K + channel;
  const T* gates = args.gates + pixel * 4 * K + channel;
  T* d = args.d + pixel * 4 * K + channel;
  T* carry = args.carry + row;
  if (!args.valid(pixel)) {
    pass_on(channels, c, carry);
    for (int gate = 0; gate < 4; ++gate) zero(channels, d + gate * K);
    return;
  }
  const T* grad = args.grad_output + row;
  const T* h_row = args.h + row;
  for_lanes<A>(channels, [&](int64_t k, auto lanes) {
    const Vec<A> r = load(gates + k, lanes), z = load(gates + K + k, lanes);
    const Vec<A> n = load(gates + 2 * K + k, lanes), q = load(gates + 3 * K + k, lanes);
    const Vec<A> dh = load(grad + k, lanes) + load(carry + k, lanes) + load(c + k, lanes);
    const Vec<A> d_n = dh * (1 - z) * tanh_derivative(n);
    store(d + k, d_n * q * sigmoid_derivative(r), lanes);
    store(d + K + k, dh * (load(h_row + k, lanes) - n) * sigmoid_derivative(z), lanes);
    store(d + 2 * K + k, d_n, lanes);
    store(d + 3 * K + k, d_n * r, lanes);
    store(carry + k, dh * z, lanes);
  });
}

// Rows that are summed in one chain, before the sums of chains are added.
constexpr int64_t kSumChain = 128;

template <class T>
void sum_rows(int64_t begin, int64_t end, int64_t rows, int64_t stride, const T* x, acc_t<T>* sums) {
  using A = acc_t<T>;
  for_lanes<A>(end - begin, [&](int64_t k, auto lanes) {
    Vec<A> total = load(sums + begin + k, lanes);
    for (int64_t first = 0; first < rows; first += kSumChain) {
      const int64_t last = first + kSumChain < rows ? first + kSumChain : rows;
      Vec<A> sum{};
      for (int64_t row = first; row < last; ++row) sum += load(x + row * stride + begin + k, lanes);
      total += sum;
    }
    store(sums + begin + k, total, lanes);
  });
}

template <class T>
constexpr GateKernels<T> make_kernels() {
  return {
      transpose<T>,
      sum_rows<T>,
      epilogue<T, StoreSums<T>, store_sums<T>>,
      input_gates_epilogue<T>,
      reset_update_epilogue<T>,
      candidate_epilogue<T>,
      cudnn_step_epilogue<T>,
      epilogue<T, CandidateBackward<T>, candidate_backward<T>>,
      epilogue<T, ResetUpdateBackward<T>, reset_update_backward<T>>,
      epilogue<T, CudnnStepBackward<T>, cudnn_step_backward<T>>,
  };
}

}  // namespace

extern const GateKernels<float> kFloatGates = make_kernels<float>();
extern const GateKernels<double> kDoubleGates = make_kernels<double>();
extern const GateKernels<bfloat16> kBFloat16Gates = make_kernels<bfloat16>();
extern const GateKernels<float16> kFloat16Gates = make_kernels<float16>();

}  // namespace convgru::cpu::CONVGRU_ISA
