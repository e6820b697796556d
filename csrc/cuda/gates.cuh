// The elementwise half of a ConvGRU on the GPU: the epilogues of kernels.h, for N neighbouring channels of a
// row. Each has three parts: Constants fetches what is the same for all rows, Operands what else does not
// depend on the sums, so that a kernel can do both before there are any; apply makes of all what is to be
// written. What is fetched stays as it is until then: to compute with it would be to wait for it. in_vectors
// says whether N may be kVector<T>.
#pragma once
#include "scalar.cuh"

namespace convgru::cuda {

CONVGRU_DEVICE bool is_valid(const Valid& valid, int64_t row) {
  return valid.lengths == nullptr || valid.t < valid.lengths[divided(row, valid.pixels).quotient];
}

template <int N, class T>
CONVGRU_DEVICE void add(compute_t<T> (&sum)[N], const Elements<T, N>& elements) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] += elements[i];
}

// Of the addends of some channels those that are the same for all rows ...
template <class T, int N>
struct Biases {
  Elements<T, N> ih, hh;

  CONVGRU_DEVICE void fetch(const Addends<T>& addends, int channel) {
    if (addends.bias_ih != nullptr) ih = Elements<T, N>(addends.bias_ih + channel);
    if (addends.bias_hh != nullptr && channel < addends.direct)
      hh = Elements<T, N>(addends.bias_hh + channel);
  }
};

// ... and those of a row, with its W*x.
template <class T, int N>
struct RowAddends {
  Elements<T, N> maps, a;

  // a: where W*x is, or nullptr.
  CONVGRU_DEVICE void fetch(const Addends<T>& addends, const T* a_of_row, int64_t row, int channel) {
    if (addends.maps != nullptr) {
      const auto [image, pixel] = divided(row, addends.pixels);
      maps = Elements<T, N>(
          addends.maps + image * addends.image_stride + pixel * addends.pixel_stride + channel);
    }
    if (a_of_row != nullptr) a = Elements<T, N>(a_of_row + channel);
  }
  CONVGRU_DEVICE void sum_up(compute_t<T> (&sum)[N], const Biases<T, N>& biases) const {
    add<N>(sum, biases.ih);
    add<N>(sum, biases.hh);
    add<N>(sum, maps);
    add<N>(sum, a);
  }
};

template <class T>
CONVGRU_DEVICE bool in_vectors(int K, const Addends<T>& addends) {
  return in_vectors<T>(K, addends.bias_ih, addends.bias_hh, addends.maps);
}

// The next state and output of a row, or what they are past a sample's length; then they have places of their
// own.
template <int N, class T>
CONVGRU_DEVICE void advance(
    const Valid& valid, int64_t row, int64_t i, const Elements<T, N>& before, compute_t<T> (&next)[N],
    T* state, T* output) {
  if (output != state) {
    const bool moves = is_valid(valid, row);
    compute_t<T> shown[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      shown[j] = moves ? next[j] : compute_t<T>(0);
      next[j] = moves ? next[j] : before[j];
    }
    put<N>(output + i, shown);
  }
  put<N>(state + i, next);
}

template <class Epilogue, int N>
struct Constants {
  CONVGRU_DEVICE void fetch(const Epilogue&, int) {}
};
template <class Epilogue, int N>
struct Operands;

template <class T, int N>
struct Constants<ResetUpdate<T>, N> {
  Biases<T, N> biases;

  CONVGRU_DEVICE void fetch(const ResetUpdate<T>& args, int channel) {
    if (channel < 2 * args.K) biases.fetch(args.addends, channel);
  }
};
template <class T, int N>
struct Operands<ResetUpdate<T>, N> {
  RowAddends<T, N> addends;
  Elements<T, N> h;

  CONVGRU_DEVICE void fetch(const ResetUpdate<T>& args, int64_t row, int channel) {
    if (channel >= 2 * args.K) return;
    addends.fetch(args.addends, args.read ? args.a + row * 3 * args.K : nullptr, row, channel);
    if (channel < args.K && args.h != nullptr) h = Elements<T, N>(args.h + row * args.K + channel);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const ResetUpdate<T>& args) {
  return in_vectors<T>(args.K, args.a, args.h, args.rh) && in_vectors(args.K, args.addends);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const ResetUpdate<T>& args, int64_t row, int channel, const Constants<ResetUpdate<T>, N>& constants,
    const Operands<ResetUpdate<T>, N>& with, compute_t<T> (&c)[N]) {
  T* place = args.a + row * 3 * args.K + channel;
  if (channel >= 2 * args.K) {
    put<N>(place, c);
    return;
  }
  compute_t<T> sum[N] = {};
  with.addends.sum_up(sum, constants.biases);
#pragma unroll
  for (int i = 0; i < N; ++i) c[i] = sigmoid_of<T>(c[i] + sum[i]);
  if (channel >= args.K || args.keep) put<N>(place, c);
  if (channel >= args.K) return;
#pragma unroll
  for (int i = 0; i < N; ++i) c[i] *= with.h[i];
  put<N>(args.rh + row * args.K + channel, c);
}

template <class T, int N>
struct Constants<Candidate<T>, N> {
  Biases<T, N> biases;

  CONVGRU_DEVICE void fetch(const Candidate<T>& args, int channel) {
    biases.fetch(args.addends, 2 * args.K + channel);
  }
};
template <class T, int N>
struct Operands<Candidate<T>, N> {
  RowAddends<T, N> addends;
  Elements<T, N> z, h;

  CONVGRU_DEVICE void fetch(const Candidate<T>& args, int64_t row, int channel) {
    addends.fetch(args.addends, args.read ? args.a + row * 3 * args.K : nullptr, row, 2 * args.K + channel);
    const T* gates = args.a + row * 3 * args.K + channel;
    if (args.state == nullptr) return;
    z = Elements<T, N>(gates + args.K);
    if (args.h != nullptr) h = Elements<T, N>(args.h + row * args.K + channel);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const Candidate<T>& args) {
  return in_vectors<T>(args.K, args.a, args.h, args.state, args.output) && in_vectors(args.K, args.addends);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const Candidate<T>& args, int64_t row, int channel, const Constants<Candidate<T>, N>& constants,
    const Operands<Candidate<T>, N>& with, compute_t<T> (&c)[N]) {
  compute_t<T> sum[N] = {};
  with.addends.sum_up(sum, constants.biases);
#pragma unroll
  for (int i = 0; i < N; ++i) c[i] = args.relu ? relu(c[i] + sum[i]) : tanh_of<T>(c[i] + sum[i]);
  if (args.keep) put<N>(args.a + row * 3 * args.K + 2 * args.K + channel, c);
  if (args.state == nullptr) return;
#pragma unroll
  for (int i = 0; i < N; ++i) c[i] = blend(with.h[i], c[i], with.z[i]);
  advance<N>(args.valid, row, row * args.K + channel, with.h, c, args.state, args.output);
}

template <class T, int N>
struct Constants<CudnnStep<T>, N> {
  Biases<T, N> biases[3];
  Elements<T, N> b;

  CONVGRU_DEVICE void fetch(const CudnnStep<T>& args, int hidden) {
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) biases[gate].fetch(args.addends, gate * args.K + hidden);
    if (args.b != nullptr) b = Elements<T, N>(args.b + hidden);
  }
};
template <class T, int N>
struct Operands<CudnnStep<T>, N> {
  RowAddends<T, N> addends[3];
  Elements<T, N> h;

  CONVGRU_DEVICE void fetch(const CudnnStep<T>& args, int64_t row, int hidden) {
    const T* const a = args.a == nullptr ? nullptr : args.a + row * 3 * args.K;
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) addends[gate].fetch(args.addends, a, row, gate * args.K + hidden);
    if (args.state != nullptr && args.h != nullptr) h = Elements<T, N>(args.h + row * args.K + hidden);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const CudnnStep<T>& args) {
  return in_vectors<T>(args.K, args.b, args.a, args.gates, args.h, args.state, args.output) &&
         in_vectors(args.K, args.addends);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const CudnnStep<T>& args, int64_t row, int hidden, const Constants<CudnnStep<T>, N>& constants,
    const Operands<CudnnStep<T>, N>& with, compute_t<T> (&r)[N], compute_t<T> (&z)[N], compute_t<T> (&q)[N]) {
  compute_t<T> n[N], sum[3][N] = {};  // what r and z get, and n apart from r.q
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) with.addends[gate].sum_up(sum[gate], constants.biases[gate]);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    r[i] = sigmoid_of<T>(sum[0][i] + r[i]);
    z[i] = sigmoid_of<T>(sum[1][i] + z[i]);
    q[i] += constants.b[i];
    n[i] = tanh_of<T>(sum[2][i] + r[i] * q[i]);
  }
  if (args.gates != nullptr) {
    T* gates = args.gates + row * 4 * args.K + hidden;
    put<N>(gates, r);
    put<N>(gates + args.K, z);
    put<N>(gates + 2 * args.K, n);
    put<N>(gates + 3 * args.K, q);
  }
  if (args.state == nullptr) return;
#pragma unroll
  for (int i = 0; i < N; ++i) n[i] = blend(n[i], with.h[i], z[i]);
  advance<N>(args.valid, row, row * args.K + hidden, with.h, n, args.state, args.output);
}

template <class T, int N>
struct Operands<CandidateBackward<T>, N> {
  Elements<T, N> z, n, h, carry, grad_output;

  CONVGRU_DEVICE void fetch(const CandidateBackward<T>& args, int64_t row, int channel) {
    const int64_t i = row * args.K + channel;
    if (args.carries) carry = Elements<T, N>(args.carry + i);
    if (args.ends) return;
    const T* gates = args.gates + row * 3 * args.K + channel;
    z = Elements<T, N>(gates + args.K);
    n = Elements<T, N>(gates + 2 * args.K);
    h = Elements<T, N>(args.h + i);
    grad_output = Elements<T, N>(args.grad_output + i);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const CandidateBackward<T>& args) {
  return in_vectors<T>(args.K, args.grad_output, args.gates, args.h, args.carry, args.d, args.d_rz, args.d_n);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const CandidateBackward<T>& args, int64_t row, int channel, const Constants<CandidateBackward<T>, N>&,
    const Operands<CandidateBackward<T>, N>& with, compute_t<T> (&c)[N]) {
  using A = compute_t<T>;
  if (args.ends) {
    add<N>(c, with.carry);
    put<N>(args.carry + row * args.K + channel, c);
    return;
  }
  const bool valid = is_valid(args.valid, row);
  A d_z[N], d_n[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const A z = with.z[i], n = with.n[i], sum = c[i] + with.carry[i], dh = sum + with.grad_output[i];
    d_z[i] = valid ? dh * (n - with.h[i]) * sigmoid_derivative(z) : A(0);
    d_n[i] = valid ? candidate_gradient(args.relu, dh * z, n) : A(0);
    c[i] = valid ? dh * (1 - z) : sum;
  }
  T* d = args.d + row * 3 * args.K + channel;
  put<N>(d + args.K, d_z);
  put<N>(d + 2 * args.K, d_n);
  put<N>(args.d_rz + row * 2 * args.K + args.K + channel, d_z);
  put<N>(args.d_n + row * args.K + channel, d_n);
  put<N>(args.carry + row * args.K + channel, c);
}

template <class T, int N>
struct Operands<ResetUpdateBackward<T>, N> {
  Elements<T, N> r, h, carry;

  CONVGRU_DEVICE void fetch(const ResetUpdateBackward<T>& args, int64_t row, int channel) {
    const int64_t i = row * args.K + channel;
    r = Elements<T, N>(args.gates + row * 3 * args.K + channel);
    h = Elements<T, N>(args.h + i);
    carry = Elements<T, N>(args.carry + i);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const ResetUpdateBackward<T>& args) {
  return in_vectors<T>(args.K, args.gates, args.h, args.carry, args.d, args.d_rz, args.rh);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const ResetUpdateBackward<T>& args, int64_t row, int channel, const Constants<ResetUpdateBackward<T>, N>&,
    const Operands<ResetUpdateBackward<T>, N>& with, compute_t<T> (&c)[N]) {
  using A = compute_t<T>;
  A d_r[N], rh[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const A r = with.r[i];
    rh[i] = r * with.h[i];
    d_r[i] = c[i] * with.h[i] * sigmoid_derivative(r);
    c[i] = with.carry[i] + c[i] * r;
  }
  put<N>(args.d + row * 3 * args.K + channel, d_r);
  put<N>(args.d_rz + row * 2 * args.K + channel, d_r);
  put<N>(args.carry + row * args.K + channel, c);
  if (args.rh != nullptr) put<N>(args.rh + row * args.K + channel, rh);
}

template <class T, int N>
struct Operands<CudnnStepBackward<T>, N> {
  Elements<T, N> r, z, n, q, h, carry, grad_output;

  CONVGRU_DEVICE void fetch(const CudnnStepBackward<T>& args, int64_t row, int channel) {
    const int64_t i = row * args.K + channel;
    if (args.carries) carry = Elements<T, N>(args.carry + i);
    if (args.ends) return;
    const T* gates = args.gates + row * 4 * args.K + channel;
    r = Elements<T, N>(gates);
    z = Elements<T, N>(gates + args.K);
    n = Elements<T, N>(gates + 2 * args.K);
    q = Elements<T, N>(gates + 3 * args.K);
    h = Elements<T, N>(args.h + i);
    grad_output = Elements<T, N>(args.grad_output + i);
  }
};
template <class T>
CONVGRU_DEVICE bool in_vectors(const CudnnStepBackward<T>& args) {
  return in_vectors<T>(args.K, args.grad_output, args.gates, args.h, args.carry, args.d, args.hidden);
}
template <int N, class T>
CONVGRU_DEVICE void apply(
    const CudnnStepBackward<T>& args, int64_t row, int channel, const Constants<CudnnStepBackward<T>, N>&,
    const Operands<CudnnStepBackward<T>, N>& with, compute_t<T> (&c)[N]) {
  using A = compute_t<T>;
  if (args.ends) {
    add<N>(c, with.carry);
    put<N>(args.carry + row * args.K + channel, c);
    return;
  }
  const bool valid = is_valid(args.valid, row);
  A d_r[N], d_z[N], d_n[N], d_q[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const A r = with.r[i], z = with.z[i], n = with.n[i];
    const A sum = c[i] + with.carry[i], dh = sum + with.grad_output[i];
    d_n[i] = valid ? dh * (1 - z) * tanh_derivative(n) : A(0);
    d_r[i] = valid ? d_n[i] * with.q[i] * sigmoid_derivative(r) : A(0);
    d_z[i] = valid ? dh * (with.h[i] - n) * sigmoid_derivative(z) : A(0);
    d_q[i] = valid ? d_n[i] * r : A(0);
    c[i] = valid ? dh * z : sum;
  }
  T *d = args.d + row * 3 * args.K + channel, *hidden = args.hidden + row * 3 * args.K + channel;
  put<N>(d, d_r);
  put<N>(d + args.K, d_z);
  put<N>(d + 2 * args.K, d_n);
  put<N>(hidden, d_r);
  put<N>(hidden + args.K, d_z);
  put<N>(hidden + 2 * args.K, d_q);
  put<N>(args.carry + row * args.K + channel, c);
}

}  // namespace convgru::cuda
