// The kernels of gates.h; compiled once for each instruction set, in the namespace CONVGRU_ISA.
#include "../gru_math.h"
#include "gates.h"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

template <class T>
using acc_t = typename Accumulate<T>::type;

template <class T>
void reset_update(int64_t begin, int64_t end, int64_t K, T* a, const T* c, const T* h, T* rh) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    T* __restrict a_r = a + row * 3 * K;
    T* __restrict a_z = a_r + K;
    if (h == nullptr) {
#pragma omp simd
      for (int64_t k = 0; k < 2 * K; ++k) a_r[k] = store<T>(sigmoid(load(a_r[k])));
      continue;
    }
    const T* __restrict c_r = c + row * 2 * K;
    const T* __restrict c_z = c_r + K;
    const T* __restrict h_row = h + row * K;
    T* __restrict rh_row = rh + row * K;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const A r = sigmoid(load(a_r[k]) + load(c_r[k]));
      const A z = sigmoid(load(a_z[k]) + load(c_z[k]));
      a_r[k] = store<T>(r);
      a_z[k] = store<T>(z);
      rh_row[k] = store<T>(r * load(h_row[k]));
    }
  }
}

// What a sample's state and output are past its length.
template <class T>
void stand_still(int64_t K, const T* h, T* state, T* output) {
  for (int64_t k = 0; k < K; ++k) {
    state[k] = h == nullptr ? T{} : h[k];
    output[k] = T{};
  }
}

template <class T>
void candidate(
    int64_t begin, int64_t end, int64_t K, Valid valid, T* a, const T* c, const T* h, T* state, T* output) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict z_row = a + row * 3 * K + K;
    T* __restrict n_row = a + row * 3 * K + 2 * K;
    const T* __restrict c_row = c == nullptr ? nullptr : c + row * K;
    const T* __restrict h_row = h == nullptr ? nullptr : h + row * K;
    if (state == nullptr) {
#pragma omp simd
      for (int64_t k = 0; k < K; ++k)
        n_row[k] = store<T>(tanh(load(n_row[k]) + (c_row == nullptr ? A(0) : load(c_row[k]))));
      continue;
    }
    T* state_row = state + row * K;
    T* output_row = output + row * K;
    if (!valid(row)) {
      stand_still(K, h_row, state_row, output_row);
      continue;
    }
    if (h_row == nullptr) {
#pragma omp simd
      for (int64_t k = 0; k < K; ++k) {
        const A n = tanh(load(n_row[k]));
        n_row[k] = store<T>(n);
        state_row[k] = store<T>(load(z_row[k]) * n);
      }
    } else {
#pragma omp simd
      for (int64_t k = 0; k < K; ++k) {
        const A n = tanh(load(n_row[k]) + load(c_row[k]));
        n_row[k] = store<T>(n);
        state_row[k] = store<T>(blend<A>(load(h_row[k]), n, load(z_row[k])));
      }
    }
    if (output_row != state_row) memcpy(output_row, state_row, K * sizeof(T));
  }
}

template <class T>
void cudnn_step(
    int64_t begin, int64_t end, int64_t K, Valid valid, const T* a, const T* c, const T* b, const T* h,
    T* gates, T* state, T* output) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict a_row = a + row * 3 * K;
    const T* __restrict c_row = c == nullptr ? nullptr : c + row * 3 * K;
    const T* __restrict h_row = h == nullptr ? nullptr : h + row * K;
    T* __restrict gates_row = gates == nullptr ? nullptr : gates + row * 4 * K;
    T* state_row = state + row * K;
    T* output_row = output + row * K;
    const bool row_valid = valid(row);
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const A c_r = c_row == nullptr ? A(0) : load(c_row[k]);
      const A c_z = c_row == nullptr ? A(0) : load(c_row[K + k]);
      const A c_n = c_row == nullptr ? A(0) : load(c_row[2 * K + k]);
      const A r = sigmoid(load(a_row[k]) + c_r);
      const A z = sigmoid(load(a_row[K + k]) + c_z);
      const A q = c_n + (b == nullptr ? A(0) : load(b[k]));
      const A n = tanh(load(a_row[2 * K + k]) + r * q);
      const A h_k = h_row == nullptr ? A(0) : load(h_row[k]);
      if (gates_row != nullptr) {
        gates_row[k] = store<T>(r);
        gates_row[K + k] = store<T>(z);
        gates_row[2 * K + k] = store<T>(n);
        gates_row[3 * K + k] = store<T>(q);
      }
      if (state != nullptr) state_row[k] = store<T>(row_valid ? blend(n, h_k, z) : h_k);
    }
    if (state == nullptr || output_row == state_row) continue;
    if (row_valid)
      memcpy(output_row, state_row, K * sizeof(T));
    else
      for (int64_t k = 0; k < K; ++k) output_row[k] = T{};
  }
}

// carry <- carry + carry_conv, and d = 0: a step past the sample's length passes the gradient of its state
// on.
template <class T>
void pass_on(int64_t K, const T* carry_conv, T* carry) {
  if (carry_conv == nullptr) return;
#pragma omp simd
  for (int64_t k = 0; k < K; ++k) carry[k] = store<T>(load(carry[k]) + load(carry_conv[k]));
}

template <class T>
void zero(int64_t count, T* x) {
  for (int64_t k = 0; k < count; ++k) x[k] = T{};
}

template <class T>
void candidate_backward(
    int64_t begin, int64_t end, int64_t K, Valid valid, const T* grad_output, const T* carry_conv,
    const T* gates, const T* h, T* carry, T* d, T* d_n) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict z_row = gates + row * 3 * K + K;
    const T* __restrict n_row = z_row + K;
    const T* __restrict grad_row = grad_output + row * K;
    const T* __restrict conv_row = carry_conv == nullptr ? nullptr : carry_conv + row * K;
    const T* __restrict h_row = h == nullptr ? nullptr : h + row * K;
    T* __restrict carry_row = carry + row * K;
    T* __restrict d_z_row = d + row * 3 * K + K;
    T* __restrict d_n_row = d_z_row + K;
    T* __restrict dense_row = d_n + row * K;
    if (!valid(row)) {
      pass_on(K, conv_row, carry_row);
      zero(2 * K, d_z_row);
      zero(K, dense_row);
      continue;
    }
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const A z = load(z_row[k]);
      const A n = load(n_row[k]);
      const A h_k = h_row == nullptr ? A(0) : load(h_row[k]);
      const A dh = load(grad_row[k]) + load(carry_row[k]) + (conv_row == nullptr ? A(0) : load(conv_row[k]));
      const T grad_n = store<T>(dh * z * tanh_derivative(n));
      d_z_row[k] = store<T>(dh * (n - h_k) * sigmoid_derivative(z));
      d_n_row[k] = grad_n;
      dense_row[k] = grad_n;
      carry_row[k] = store<T>(dh * (A(1) - z));
    }
  }
}

template <class T>
void reset_update_backward(
    int64_t begin, int64_t end, int64_t K, const T* g, const T* gates, const T* h, T* carry, T* d, T* d_rz,
    T* rh) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict r_row = gates + row * 3 * K;
    T* __restrict d_r_row = d + row * 3 * K;
    const T* __restrict d_z_row = d_r_row + K;
    T* __restrict dense_row = d_rz + row * 2 * K;
    if (h == nullptr) {
      zero(K, d_r_row);
      zero(K, dense_row);
      memcpy(dense_row + K, d_z_row, K * sizeof(T));
      if (rh != nullptr) zero(K, rh + row * K);
      continue;
    }
    const T* __restrict h_row = h + row * K;
    const T* __restrict g_row = g + row * K;
    T* __restrict carry_row = carry + row * K;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const A r = load(r_row[k]);
      const A g_k = load(g_row[k]);
      const T grad_r = store<T>(g_k * load(h_row[k]) * sigmoid_derivative(r));
      d_r_row[k] = grad_r;
      dense_row[k] = grad_r;
      dense_row[K + k] = d_z_row[k];
      carry_row[k] = store<T>(load(carry_row[k]) + g_k * r);
    }
    if (rh == nullptr) continue;
    T* __restrict rh_row = rh + row * K;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) rh_row[k] = store<T>(load(r_row[k]) * load(h_row[k]));
  }
}

template <class T>
void cudnn_step_backward(
    int64_t begin, int64_t end, int64_t K, Valid valid, const T* grad_output, const T* carry_conv,
    const T* gates, const T* h, T* carry, T* d, T* d_hidden) {
  using A = acc_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* __restrict gates_row = gates + row * 4 * K;
    const T* __restrict grad_row = grad_output + row * K;
    const T* __restrict conv_row = carry_conv == nullptr ? nullptr : carry_conv + row * K;
    const T* __restrict h_row = h == nullptr ? nullptr : h + row * K;
    T* __restrict carry_row = carry + row * K;
    T* __restrict d_row = d + row * 3 * K;
    T* __restrict hidden_row = d_hidden + row * 3 * K;
    if (!valid(row)) {
      pass_on(K, conv_row, carry_row);
      zero(3 * K, d_row);
      zero(3 * K, hidden_row);
      continue;
    }
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) {
      const A r = load(gates_row[k]);
      const A z = load(gates_row[K + k]);
      const A n = load(gates_row[2 * K + k]);
      const A q = load(gates_row[3 * K + k]);
      const A h_k = h_row == nullptr ? A(0) : load(h_row[k]);
      const A dh = load(grad_row[k]) + load(carry_row[k]) + (conv_row == nullptr ? A(0) : load(conv_row[k]));
      const A grad_n = dh * (A(1) - z) * tanh_derivative(n);
      const T grad_r = store<T>(grad_n * q * sigmoid_derivative(r));
      const T grad_z = store<T>(dh * (h_k - n) * sigmoid_derivative(z));
      d_row[k] = hidden_row[k] = grad_r;
      d_row[K + k] = hidden_row[K + k] = grad_z;
      d_row[2 * K + k] = store<T>(grad_n);
      hidden_row[2 * K + k] = store<T>(grad_n * r);
      carry_row[k] = store<T>(dh * z);
    }
  }
}

template <class T>
void add(
    int64_t begin, int64_t end, int64_t width, T* y, const T* x, int64_t pixels, int64_t image_stride,
    int64_t pixel_stride) {
  for (int64_t row = begin; row < end; ++row) {
    T* __restrict y_row = y + row * width;
    const T* __restrict x_row = x + row / pixels * image_stride + row % pixels * pixel_stride;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) y_row[k] = store<T>(load(y_row[k]) + load(x_row[k]));
  }
}

constexpr int64_t kTransposeTile = 16;

// The part of a transposition that starts at row i0, column j0.
template <class T>
void transpose_tile(int64_t i0, int64_t j0, int64_t rows, int64_t columns, const T* x, T* y) {
  if (i0 + kTransposeTile <= rows &&
      j0 + kTransposeTile <= columns) {  // of fixed size: stays in vector registers
    T tile[kTransposeTile][kTransposeTile];
    for (int64_t i = 0; i < kTransposeTile; ++i) memcpy(tile[i], x + (i0 + i) * columns + j0, sizeof tile[i]);
    for (int64_t j = 0; j < kTransposeTile; ++j) {
      T column[kTransposeTile];
      for (int64_t i = 0; i < kTransposeTile; ++i) column[i] = tile[i][j];
      memcpy(y + (j0 + j) * rows + i0, column, sizeof column);
    }
    return;
  }
  for (int64_t j = j0; j < columns && j < j0 + kTransposeTile; ++j)
    for (int64_t i = i0; i < rows && i < i0 + kTransposeTile; ++i) y[j * rows + i] = x[i * columns + j];
}

template <class T>
void transpose(int64_t begin, int64_t end, int64_t rows, int64_t columns, const T* x, T* y) {
  for (int64_t image = begin; image < end; ++image) {
    const T* x_image = x + image * rows * columns;
    T* y_image = y + image * rows * columns;
    // The longer axis innermost: the other way round every tile would touch new pages.
    if (columns >= rows) {
      for (int64_t i0 = 0; i0 < rows; i0 += kTransposeTile)
        for (int64_t j0 = 0; j0 < columns; j0 += kTransposeTile)
          transpose_tile(i0, j0, rows, columns, x_image, y_image);
    } else {
      for (int64_t j0 = 0; j0 < columns; j0 += kTransposeTile)
        for (int64_t i0 = 0; i0 < rows; i0 += kTransposeTile)
          transpose_tile(i0, j0, rows, columns, x_image, y_image);
    }
  }
}

template <class T>
constexpr GateKernels<T> make_kernels() {
  return {
      reset_update<T>,          candidate<T>,           cudnn_step<T>, candidate_backward<T>,
      reset_update_backward<T>, cudnn_step_backward<T>, add<T>,        transpose<T>,
  };
}

}  // namespace

extern const GateKernels<float> kFloat = make_kernels<float>();
extern const GateKernels<double> kDouble = make_kernels<double>();
extern const GateKernels<bfloat16> kBFloat16 = make_kernels<bfloat16>();
extern const GateKernels<float16> kFloat16 = make_kernels<float16>();

}  // namespace convgru::cpu::CONVGRU_ISA
