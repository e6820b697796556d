// The elementwise half of a ConvGRU on the GPU: the epilogues of kernels.h, for one row and one channel.
#pragma once
#include "scalar.cuh"

namespace convgru::cuda {

CONVGRU_DEVICE bool is_valid(const Valid& valid, int64_t row) {
  return valid.lengths == nullptr || valid.t < valid.lengths[row / valid.pixels];
}

template <class T>
CONVGRU_DEVICE compute_t<T> addends_of(const Addends<T>& addends, int64_t row, int channel) {
  compute_t<T> sum(0);
  if (addends.bias_ih != nullptr) sum += widen(addends.bias_ih[channel]);
  if (addends.bias_hh != nullptr && channel < addends.direct) sum += widen(addends.bias_hh[channel]);
  if (addends.maps != nullptr)
    sum += widen(addends.maps
                     [row / addends.pixels * addends.image_stride +
                      row % addends.pixels * addends.pixel_stride + channel]);
  return sum;
}

template <class T>
CONVGRU_DEVICE compute_t<T> state_of(const T* h, int64_t i) {
  return h == nullptr ? compute_t<T>(0) : widen(h[i]);
}

// The next state and output of a row, or what they are past a sample's length.
template <class T>
CONVGRU_DEVICE void advance(
    const Valid& valid, int64_t row, int64_t i, compute_t<T> before, compute_t<T> next, T* state, T* output) {
  const bool moves = is_valid(valid, row);
  state[i] = narrow<T>(moves ? next : before);
  if (output != state) output[i] = narrow<T>(moves ? next : compute_t<T>(0));
}

template <class T>
CONVGRU_DEVICE void apply(const StoreSums<T>& to, int64_t row, int channel, compute_t<T> c) {
  T& place = to.y[row * to.pixel_stride + channel];
  place = narrow<T>(to.add ? c + widen(place) : c);
}

template <class T>
CONVGRU_DEVICE void apply(const ResetUpdate<T>& args, int64_t row, int channel, compute_t<T> c) {
  T& place = args.a[row * 3 * args.K + channel];
  if (channel >= 2 * args.K) {
    place = narrow<T>(c);
    return;
  }
  compute_t<T> sum = c + addends_of(args.addends, row, channel);
  if (args.read) sum += widen(place);
  const compute_t<T> s = sigmoid(sum);
  if (channel >= args.K || args.keep) place = narrow<T>(s);
  if (channel < args.K) {
    const int64_t i = row * args.K + channel;
    args.rh[i] = narrow<T>(s * state_of(args.h, i));
  }
}

template <class T>
CONVGRU_DEVICE void apply(const Candidate<T>& args, int64_t row, int channel, compute_t<T> c) {
  using A = compute_t<T>;
  T* gates = args.a + row * 3 * args.K + channel;
  A sum = c + addends_of(args.addends, row, 2 * args.K + channel);
  if (args.read) sum += widen(gates[2 * args.K]);
  const A n = args.relu ? relu(sum) : tanh(sum);
  if (args.keep) gates[2 * args.K] = narrow<T>(n);
  if (args.state == nullptr) return;
  const int64_t i = row * args.K + channel;
  const A before = state_of(args.h, i);
  advance(args.valid, row, i, before, blend(before, n, widen(gates[args.K])), args.state, args.output);
}

template <class T>
CONVGRU_DEVICE void apply(
    const CudnnStep<T>& args, int64_t row, int hidden, compute_t<T> c_r, compute_t<T> c_z, compute_t<T> c_n) {
  using A = compute_t<T>;
  const auto outside = [&](int gate) {
    const int channel = gate * args.K + hidden;
    const A sum = addends_of(args.addends, row, channel);
    return args.a == nullptr ? sum : sum + widen(args.a[row * 3 * args.K + channel]);
  };
  const A r = sigmoid(outside(0) + c_r), z = sigmoid(outside(1) + c_z);
  const A q = args.b == nullptr ? c_n : c_n + widen(args.b[hidden]);
  const A n = tanh(outside(2) + r * q);
  if (args.gates != nullptr) {
    T* gates = args.gates + row * 4 * args.K + hidden;
    gates[0] = narrow<T>(r);
    gates[args.K] = narrow<T>(z);
    gates[2 * args.K] = narrow<T>(n);
    gates[3 * args.K] = narrow<T>(q);
  }
  if (args.state == nullptr) return;
  const int64_t i = row * args.K + hidden;
  const A before = state_of(args.h, i);
  advance(args.valid, row, i, before, blend(n, before, z), args.state, args.output);
}

// Whether a row is past its sample's length: then the gradient of its state passes on, and the `count` d from
// `d` on, K apart, are zero.
template <class Backward, class T>
CONVGRU_DEVICE bool passes_on(const Backward& args, int64_t row, int64_t i, compute_t<T> c, T* d, int count) {
  if (is_valid(args.valid, row)) return false;
  for (int gate = 0; gate < count; ++gate) d[gate * args.K] = narrow<T>(compute_t<T>(0));
  args.carry[i] = narrow<T>(widen(args.carry[i]) + c);
  return true;
}

template <class T>
CONVGRU_DEVICE void apply(const CandidateBackward<T>& args, int64_t row, int channel, compute_t<T> c) {
  using A = compute_t<T>;
  const int64_t i = row * args.K + channel;
  const T* gates = args.gates + row * 3 * args.K + channel;
  T* d = args.d + row * 3 * args.K + channel;
  if (passes_on(args, row, i, c, d + args.K, 2)) return;
  const A z = widen(gates[args.K]), n = widen(gates[2 * args.K]);
  const A dh = widen(args.grad_output[i]) + widen(args.carry[i]) + c;
  d[args.K] = narrow<T>(dh * (n - widen(args.h[i])) * sigmoid_derivative(z));
  d[2 * args.K] = narrow<T>(candidate_gradient(args.relu, dh * z, n));
  args.carry[i] = narrow<T>(dh * (1 - z));
}

template <class T>
CONVGRU_DEVICE void apply(const ResetUpdateBackward<T>& args, int64_t row, int channel, compute_t<T> c) {
  using A = compute_t<T>;
  const int64_t i = row * args.K + channel, j = row * 3 * args.K + channel;
  const A r = widen(args.gates[j]), h = widen(args.h[i]);
  args.d[j] = narrow<T>(c * h * sigmoid_derivative(r));
  args.carry[i] = narrow<T>(widen(args.carry[i]) + c * r);
  if (args.rh != nullptr) args.rh[i] = narrow<T>(r * h);
}

template <class T>
CONVGRU_DEVICE void apply(const CudnnStepBackward<T>& args, int64_t row, int channel, compute_t<T> c) {
  using A = compute_t<T>;
  const int64_t i = row * args.K + channel;
  const T* gates = args.gates + row * 4 * args.K + channel;
  T* d = args.d + row * 4 * args.K + channel;
  if (passes_on(args, row, i, c, d, 4)) return;
  const A r = widen(gates[0]), z = widen(gates[args.K]);
  const A n = widen(gates[2 * args.K]), q = widen(gates[3 * args.K]);
  const A dh = widen(args.grad_output[i]) + widen(args.carry[i]) + c;
  const A d_n = dh * (1 - z) * tanh_derivative(n);
  d[0] = narrow<T>(d_n * q * sigmoid_derivative(r));
  d[args.K] = narrow<T>(dh * (widen(args.h[i]) - n) * sigmoid_derivative(z));
  d[2 * args.K] = narrow<T>(d_n);
  d[3 * args.K] = narrow<T>(d_n * r);
  args.carry[i] = narrow<T>(dh * z);
}

}  // namespace convgru::cuda
