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

// The addends of a pixel, for the channels [channel, ...).
template <class T>
struct PixelAddends {
  const acc_t<T>* bias;
  const T* map;

  PixelAddends(const Addends<T>& addends, int64_t pixel, int64_t channel)
      : bias(addends.bias == nullptr ? nullptr : addends.bias + channel),
        map(addends.maps == nullptr ? nullptr
                                    : addends.maps + pixel / addends.pixels * addends.image_stride +
                                          pixel % addends.pixels * addends.pixel_stride + channel) {}

  template <class L>
  Vec<acc_t<T>> operator()(Vec<acc_t<T>> c, int64_t k, L lanes) const {
    if (bias != nullptr) c += load(bias + k, lanes);
    if (map != nullptr) c += load(map + k, lanes);
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
  const InputGates<T>& args = *static_cast<const InputGates<T>*>(arguments);
  for_gates(args.a.K, channel, channels, [&](int64_t gate, int64_t hidden, int64_t some, int64_t offset) {
    for (int64_t i = 0; i < count; ++i) {
      const PixelAddends<T> addends(args.addends, pixels[i], channel + offset);
      const acc_t<T>* sums = c + i * stride + offset;
      T* a = args.a.at(pixels[i], gate, hidden);
      for_lanes<acc_t<T>>(some, [&](int64_t k, auto lanes) {
        store(a + k, addends(load(sums + k, lanes), k, lanes), lanes);
      });
    }
  });
}

template <class T>
Epilogue<T> input_gates_epilogue(const InputGates<T>& args) {
  return {input_gates<T>, &args};
}

// `count` channels from `hidden` on of one gate.
template <class T, bool kFirst>
void reset_update_gate(
    const ResetUpdate<T>& args, int64_t pixel, int64_t gate, int64_t hidden, int64_t count,
    const acc_t<T>* sums) {
  using A = acc_t<T>;
  const int64_t K = args.a.K;
  T* a = args.a.at(pixel, gate, hidden);
  const T* h = args.h + pixel * K + hidden;
  T* rh = args.rh + pixel * K + hidden;
  const PixelAddends<T> addends(args.addends, pixel, gate * K + hidden);
  for_lanes<A>(count, [&](int64_t k, auto lanes) {
    Vec<A> sum = load(sums + k, lanes);
    if constexpr (kFirst)
      sum = addends(sum, k, lanes);
    else
      sum += load(a + k, lanes);
    if (kFirst && gate == 2) {
      store(a + k, sum, lanes);
      return;
    }
    const Vec<A> s = sigmoid(sum);
    if (gate == 1 || args.keep) store(a + k, s, lanes);
    if (gate == 0) store(rh + k, s * load(h + k, lanes), lanes);
  });
}

template <class T, bool kFirst>
void reset_update(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  const ResetUpdate<T>& args = *static_cast<const ResetUpdate<T>*>(arguments);
  for_gates(args.a.K, channel, channels, [&](int64_t gate, int64_t hidden, int64_t some, int64_t offset) {
    for (int64_t i = 0; i < count; ++i)
      reset_update_gate<T, kFirst>(args, pixels[i], gate, hidden, some, c + i * stride + offset);
  });
}

template <class T>
Epilogue<T> reset_update_epilogue(const ResetUpdate<T>& args) {
  return {args.first ? reset_update<T, true> : reset_update<T, false>, &args};
}

// What a sample's state and output are past its length.
template <class T>
void stand_still(int64_t count, const T* h, T* state, T* output) {
  if (state != h) memcpy(state, h, count * sizeof(T));
  for (int64_t k = 0; k < count; ++k) output[k] = T{};
}

template <class T>
void candidate(
    const Candidate<T>& args, int64_t pixel, int64_t channel, int64_t channels, const acc_t<T>* c) {
  using A = acc_t<T>;
  const int64_t row = pixel * args.a.K + channel;
  const T* z = args.a.at(pixel, 1, channel);
  T* n = args.a.at(pixel, 2, channel);
  const T* h = args.h + row;
  T* state = args.state == nullptr ? nullptr : args.state + row;
  T* output = args.output + row;
  const bool advance = state != nullptr && args.valid(pixel);
  for_lanes<A>(channels, [&](int64_t k, auto lanes) {
    const Vec<A> value = tanh<Vec<A>>(load(n + k, lanes) + load(c + k, lanes));
    if (args.keep) store(n + k, value, lanes);
    if (!advance) return;
    const Vec<A> next = blend(load(h + k, lanes), value, load(z + k, lanes));
    store(state + k, next, lanes);
    if (output != state) store(output + k, next, lanes);
  });
  if (state != nullptr && !advance) stand_still(channels, h, state, output);
}

// `count` channels from `hidden` on of one gate.
template <class T>
void cudnn_step_gate(
    const CudnnStep<T>& args, int64_t pixel, int64_t gate, int64_t hidden, int64_t count, const acc_t<T>* c) {
  using A = acc_t<T>;
  const int64_t K = args.a.K;
  const T* a = args.a.at(pixel, gate, hidden);
  T* gates = args.gates + pixel * 4 * K + hidden;
  if (gate < 2)
    return for_lanes<A>(count, [&](int64_t k, auto lanes) {
      store(gates + gate * K + k, sigmoid<Vec<A>>(load(a + k, lanes) + load(c + k, lanes)), lanes);
    });
  const A* b = args.b == nullptr ? nullptr : args.b + hidden;
  const T* h = args.h + pixel * K + hidden;
  T* state = args.state == nullptr ? nullptr : args.state + pixel * K + hidden;
  T* output = args.output + pixel * K + hidden;
  const bool advance = state != nullptr && args.valid(pixel);
  for_lanes<A>(count, [&](int64_t k, auto lanes) {
    Vec<A> q = load(c + k, lanes);
    if (b != nullptr) q += load(b + k, lanes);
    const Vec<A> n = tanh<Vec<A>>(load(a + k, lanes) + load(gates + k, lanes) * q);
    if (args.keep) {
      store(gates + 2 * K + k, n, lanes);
      store(gates + 3 * K + k, q, lanes);
    }
    if (!advance) return;
    const Vec<A> next = blend(n, load(h + k, lanes), load(gates + K + k, lanes));
    store(state + k, next, lanes);
    if (output != state) store(output + k, next, lanes);
  });
  if (state != nullptr && !advance) stand_still(count, h, state, output);
}

template <class T>
void cudnn_step(
    const void* arguments, const int64_t* pixels, int64_t count, int64_t channel, int64_t channels,
    const acc_t<T>* c, int64_t stride) {
  const CudnnStep<T>& args = *static_cast<const CudnnStep<T>*>(arguments);
  while (channels > 0) {
    const CudnnChannel place = cudnn_channel(channel, args.a.K);
    const int64_t run = place.run < channels ? place.run : channels;
    for (int64_t i = 0; i < count; ++i)
      cudnn_step_gate(args, pixels[i], place.gate, place.hidden, run, c + i * stride);
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
    store(d_n + k, dh * z * tanh_derivative(n), lanes);
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
      epilogue<T, Candidate<T>, candidate<T>>,
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
