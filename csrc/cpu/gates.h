// The elementwise half of a ConvGRU on the CPU: raw pointers, no torch, no threads. Each function works on
// the rows [begin, end) of channels-last buffers; a row is one pixel of one sample, `rows` are N*H*W pixels
// of one time step unless said otherwise. Nothing may alias but what is said to.
#pragma once
#include <cstdint>

#include "scalar.h"

namespace convgru::cpu {

// Which samples a time step is valid for. lengths (N,) or nullptr: for all.
struct Valid {
  const int64_t* lengths;
  int64_t t;
  int64_t pixels;  // H*W, the rows of a sample
  bool operator()(int64_t row) const { return lengths == nullptr || t < lengths[row / pixels]; }
};

template <class T>
struct GateKernels {
  // "gru-rcn", first half: r, z = sigmoid(a_rz + c), rh = r.h. Used on the rows of all time steps too.
  void (*reset_update)(
      int64_t begin, int64_t end, int64_t K,
      T* a,        // [rows][3K] in: what the gates receive from outside, r|z|n; out: r|z|n with r and z final
      const T* c,  // [rows][2K] U_rz*h, or nullptr for zeros
      const T* h,  // [rows][K] previous state, or nullptr for zeros
      T* rh);      // [rows][K] out; not written if h is nullptr

  // "gru-rcn", second half: n = tanh(a_n + c), h' = (1-z).h + z.n.
  void (*candidate)(
      int64_t begin, int64_t end, int64_t K, Valid valid,
      T* a,        // [rows][3K] in: r|z|a_n; out: r|z|n
      const T* c,  // [rows][K] U_n*(r.h), or nullptr for zeros
      const T* h,  // [rows][K] previous state, or nullptr for zeros
      T* state,    // [rows][K] out: h' where valid, else h; nullptr: only n is wanted
      T* output);  // [rows][K] out: h' where valid, else 0; may be state itself if every row is valid

  // "cudnn": r, z = sigmoid(a_rz + c_rz), q = c_n + b, n = tanh(a_n + r.q), h' = (1-z).n + z.h.
  void (*cudnn_step)(
      int64_t begin, int64_t end, int64_t K, Valid valid,
      const T* a,  // [rows][3K] what the gates receive from outside, r|z|n
      const T* c,  // [rows][3K] U*h, or nullptr for zeros
      const T* b,  // [K] b_hn, or nullptr for zeros
      const T* h,  // [rows][K] previous state, or nullptr for zeros
      T* gates,    // [rows][4K] out: r|z|n|q, or nullptr
      T* state,    // as in candidate
      T* output);  // as in candidate

  // Gradient of candidate: dh = carry + carry_conv + grad_output where valid;
  // d_n = dh.z.(1-n^2), d_z = dh.(n-h).z.(1-z), carry <- dh.(1-z). Where not valid: d = 0, carry <- carry +
  // carry_conv.
  void (*candidate_backward)(
      int64_t begin, int64_t end, int64_t K, Valid valid,
      const T* grad_output,  // [rows][K]
      const T* carry_conv,   // [rows][K] second addend of carry, or nullptr for zeros
      const T* gates,        // [rows][3K] r|z|n
      const T* h,            // [rows][K] previous state, or nullptr for zeros
      T* carry,              // [rows][K] in and out
      T* d,                  // [rows][3K] out: z and n of the pre-activation gradients r|z|n
      T* d_n);               // [rows][K] out: d_n once more, dense

  // Gradient of reset_update: d_r = g.h.r.(1-r), carry <- carry + g.r. Where g is nullptr: d_r = 0.
  void (*reset_update_backward)(
      int64_t begin, int64_t end, int64_t K,
      const T* g,      // [rows][K] U_n^T*d_n, or nullptr for zeros
      const T* gates,  // [rows][3K] r|z|n
      const T* h,      // [rows][K] previous state, or nullptr for zeros
      T* carry,        // [rows][K] in and out
      T* d,            // [rows][3K] in: d_z; out: d_r
      T* d_rz,         // [rows][2K] out: d_r|d_z once more, dense
      T* rh);          // [rows][K] out: r.h, or nullptr

  // Gradient of cudnn_step: dh as in candidate_backward; d_n = dh.(1-z).(1-n^2), d_z = dh.(h-n).z.(1-z),
  // d_r = d_n.q.r.(1-r), d_q = d_n.r, carry <- dh.z.
  void (*cudnn_step_backward)(
      int64_t begin, int64_t end, int64_t K, Valid valid,
      const T* grad_output,  // [rows][K]
      const T* carry_conv,   // [rows][K] second addend of carry, or nullptr for zeros
      const T* gates,        // [rows][4K] r|z|n|q
      const T* h,            // [rows][K] previous state, or nullptr for zeros
      T* carry,              // [rows][K] in and out
      T* d,                  // [rows][3K] out: d_r|d_z|d_n
      T* d_hidden);          // [rows][3K] out: d_r|d_z|d_q

  // y <- y + x, y [rows][width]; x has a row for each row, each sample (image) or for all: see the strides.
  void (*add)(
      int64_t begin, int64_t end, int64_t width, T* y, const T* x,
      int64_t pixels,         // rows of an image
      int64_t image_stride,   // from one image of x to the next, in elements; 0: the same for all
      int64_t pixel_stride);  // from one pixel of x to the next, in elements; 0: the same for all

  // Images (C,H,W) -> (H,W,C) and back, each [rows][columns] -> [columns][rows], for the images [begin, end).
  void (*transpose)(int64_t begin, int64_t end, int64_t rows, int64_t columns, const T* x, T* y);
};

// The kernels for the instruction set that capability() names; T is float, double, bfloat16 or float16.
template <class T>
const GateKernels<T>& gate_kernels();

}  // namespace convgru::cpu
