// The elementwise half of a ConvGRU on the CPU, as epilogues of its convolutions (convolution.h): raw
// pointers, no torch, no threads.
//
// Each struct holds the arguments of one epilogue; its comment says what it computes from the sums c. Buffers
// are channels last: a row is a pixel of one time step, number p = (n*H + row)*W + column. States are never
// missing: where there is no initial state they point to zeros. Nothing may alias but what is said to.
#pragma once
#include <cstdint>

#include "convolution.h"

namespace convgru::cpu {

// Which samples a time step is valid for. lengths (N,) or nullptr: for all.
struct Valid {
  const int64_t* lengths;
  int64_t t;
  int64_t pixels;  // H*W, the rows of a sample
  CONVGRU_INLINE bool operator()(int64_t row) const {
    return lengths == nullptr || t < lengths[row / pixels];
  }
  // Rows that are valid or not together; 0: all are.
  CONVGRU_INLINE int64_t sample() const { return lengths == nullptr ? 0 : pixels; }
};

// What the pre-activations receive besides convolutions.
template <class T>
struct Addends {
  const acc_t<T>* bias;  // [3K] or nullptr
  const T* maps;         // gate_bias, or nullptr
  int64_t pixels;        // H*W
  int64_t image_stride;  // from one image of maps to the next
  int64_t pixel_stride;  // from one pixel of maps to the next; 0: one value for the image
  // Rows in which they are that far apart; 0: any.
  CONVGRU_INLINE int64_t sample() const { return maps == nullptr ? 0 : pixels; }
};

// y = c (+ what y holds already)
template <class T>
struct StoreSums {
  T* y;  // [rows][channels]
  int64_t pixel_stride;
  const T* add;  // laid out as y, may be y; or nullptr
};

// The 3K values of each row that belong to the gates r, z and n. Where epilogues of F(4x4, 3x3) alone read
// them they lie in the order in which those do: a tile's kTileRows pixels next to each other, kRun channels
// of a gate for all of them before the next.
template <class T>
struct GateRows {
  static constexpr int64_t kTileSide = 4, kTileRows = kTileSide * kTileSide, kRun = 32;

  T* data;
  int64_t K;
  const uint32_t* slots;  // nullptr: [rows][3K]; else where each row is, tile * kTileRows + pixel of the tile

  // Where the values of a row and, from there on, the channels of a gate from `hidden` on are: all of them or
  // those up to the next multiple of kRun.
  CONVGRU_INLINE T* at(int64_t row) const {
    if (slots == nullptr) return data + row * 3 * K;
    const int64_t tile = slots[row] / kTileRows, pixel = slots[row] % kTileRows;
    return data + tile * kTileRows * 3 * K + pixel * run();
  }
  CONVGRU_INLINE int64_t offset(int64_t gate, int64_t hidden) const {
    if (slots == nullptr) return gate * K + hidden;
    const int64_t within = hidden % run();
    return (gate * K + hidden - within) * kTileRows + within;
  }

  // From a row to the next, if they lie together; of rows that follow each other [first, last], at most a
  // tile's side.
  CONVGRU_INLINE int64_t step() const { return slots == nullptr ? 3 * K : run(); }
  CONVGRU_INLINE bool together(int64_t first, int64_t last) const {
    return slots == nullptr || (slots[last] - slots[first] == last - first &&
                                slots[last] / kTileSide == slots[first] / kTileSide);
  }

  // In the order of tiles: channels of a gate that lie together.
  CONVGRU_INLINE int64_t run() const { return K % kRun == 0 ? kRun : K; }
};

// What the gates receive from outside the recurrence: a = c + addends, c = W*x.
template <class T>
struct InputGates {
  Addends<T> addends;
  GateRows<T> a;  // out
};

// "gru-rcn", first half: r, z = sigmoid(a_rz + c), rh = r.h.
template <class T>
struct ResetUpdate {
  GateRows<T> a;  // in: as InputGates leaves it; out: r|z|a_n
  bool keep;      // r is wanted in a
  // W*x is in c already: a = addends, which are not in `a`.
  bool joined;
  Addends<T> addends;
  const T* h;  // [rows][K] previous state
  T* rh;       // [rows][K] out
};

// "gru-rcn", second half: n = tanh(a_n + c) or relu(a_n + c), h' = (1-z).h + z.n.
template <class T>
struct Candidate {
  bool relu;
  Valid valid;
  GateRows<T> a;       // in: r|z|a_n; out: r|z|n
  bool keep;           // n is wanted in a
  bool joined;         // as in ResetUpdate
  Addends<T> addends;  // as there
  const T* h;          // [rows][K] previous state
  T* state;            // [rows][K] out: h' where valid, else h; may be h itself; nullptr: only n is wanted
  T* output;           // [rows][K] out: h' where valid, else 0; may be state itself if every row is valid
};

// "cudnn": r, z = sigmoid(a_rz + c_rz), q = c_n + b, n = tanh(a_n + r.q), h' = (1-z).n + z.h. Its channels
// come in the order of cudnn_channel: r, z and n of a group before those of the next.
template <class T>
struct CudnnStep {
  Valid valid;
  GateRows<T> a;      // as InputGates leaves it
  const acc_t<T>* b;  // [K] b_hn, or nullptr
  const T* h;         // [rows][K] previous state
  T* gates;           // [rows][4K] out: r|z|n|q; with keep false r and z alone count
  bool keep;
  T* state;   // as in Candidate, but not h
  T* output;  // as in Candidate
};

// Gradient of Candidate: dh = carry + c + grad_output where valid; d_n = dh.z.(1-n^2), or dh.z where n > 0,
// d_z = dh.(n-h).z.(1-z), carry <- dh.(1-z). Where not valid: d = 0, carry <- carry + c.
template <class T>
struct CandidateBackward {
  bool relu;
  int64_t K;
  Valid valid;
  const T* grad_output;  // [rows][K]
  const T* gates;        // [rows][3K] r|z|n
  const T* h;            // [rows][K] previous state
  T* carry;              // [rows][K] in and out
  T* d;                  // [rows][3K] out: z and n of the pre-activation gradients r|z|n
};

// Gradient of ResetUpdate, with c the gradient of rh: d_r = c.h.r.(1-r), carry <- carry + c.r.
template <class T>
struct ResetUpdateBackward {
  int64_t K;
  const T* gates;  // [rows][3K] r|z|n
  const T* h;      // [rows][K] previous state
  T* carry;        // [rows][K] in and out
  T* d;            // [rows][3K] out: d_r
  T* rh;           // [rows][K] out: r.h, or nullptr
};

// Gradient of CudnnStep: dh as in CandidateBackward; d_n = dh.(1-z).(1-n^2), d_z = dh.(h-n).z.(1-z),
// d_r = d_n.q.r.(1-r), d_q = d_n.r, carry <- dh.z.
template <class T>
struct CudnnStepBackward {
  int64_t K;
  Valid valid;
  const T* grad_output;  // [rows][K]
  const T* gates;        // [rows][4K] r|z|n|q
  const T* h;            // [rows][K] previous state
  T* carry;              // [rows][K] in and out
  T* d;                  // [rows][4K] out: d_r|d_z|d_n|d_q
};

// The order in which "cudnn" computes its 3K channels: by groups of kCudnnGroup hidden channels, of a group
// first r, then z, then n, which needs both. 3 * kCudnnGroup is a multiple of every kernel's channel_block
// and the convolution's channel_unit, so no group is torn apart where channels are divided among threads.
constexpr int64_t kCudnnGroup = 32;
struct CudnnChannel {
  int64_t gate, hidden;  // 0, 1, 2 for r, z, n; hidden channel
  int64_t run;           // so many channels from here on are of the same gate
};
CONVGRU_INLINE CudnnChannel cudnn_channel(int64_t channel, int64_t K) {
  const int64_t group = channel / (3 * kCudnnGroup), within = channel % (3 * kCudnnGroup);
  const int64_t left = K - group * kCudnnGroup, size = left < kCudnnGroup ? left : kCudnnGroup;
  const int64_t gate = within / size, offset = within % size;
  return {gate, group * kCudnnGroup + offset, size - offset};
}

// The epilogues, and what else is done to elements.
template <class T>
struct GateKernels {
  // y[column][row] = x[row][column]; rows of x are x_stride apart, those of y y_stride.
  void (*transpose)(int64_t rows, int64_t columns, const T* x, int64_t x_stride, T* y, int64_t y_stride);

  // Adds to `sums` those over the rows of x [rows][stride] for the columns [begin, end).
  void (*sum_rows)(int64_t begin, int64_t end, int64_t rows, int64_t stride, const T* x, acc_t<T>* sums);

  Epilogue<T> (*store_sums)(const StoreSums<T>&);
  Epilogue<T> (*input_gates)(const InputGates<T>&);
  Epilogue<T> (*reset_update)(const ResetUpdate<T>&);
  Epilogue<T> (*candidate)(const Candidate<T>&);
  Epilogue<T> (*cudnn_step)(const CudnnStep<T>&);
  Epilogue<T> (*candidate_backward)(const CandidateBackward<T>&);
  Epilogue<T> (*reset_update_backward)(const ResetUpdateBackward<T>&);
  Epilogue<T> (*cudnn_step_backward)(const CudnnStepBackward<T>&);
};

// The kernels for the instruction set that capability() names; T is float, double, bfloat16 or float16.
template <class T>
const GateKernels<T>& gate_kernels();

}  // namespace convgru::cpu
