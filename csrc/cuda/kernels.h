// What the GPU kernels are asked for: plain structs and functions on raw pointers and a stream. No torch, no
// CUDA header.
//
// A convolution is a matrix product whose sums go to an epilogue while they are on the chip: its rows are
// pixels, its columns output channels. Each epilogue is a struct of arguments; its comment says what it
// computes from the sums c. Buffers are channels last: a row is a pixel of one time step, number (n*H + y)*W
// + x. A state h of nullptr is zero. Nothing may alias but what is said to.
#pragma once
#include <cstddef>
#include <cstdint>

namespace convgru::cuda {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that a kernel computes in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

// A cudaStream_t.
using Stream = void*;

// Bytes that a thread copies at once, and the bytes of a pixel's channels that are worked on together.
constexpr int kCopyBytes = 16;
constexpr int kDepthBytes = 64;
// Columns of a tile. Those of "cudnn" are groups of r, z and n of the same hidden channels, which must not be
// torn apart.
constexpr int kColumns = 64, kCudnnGroup = 16, kCudnnColumns = 2 * 3 * kCudnnGroup;

constexpr int padded(int count, int unit) {
  return (count + unit - 1) / unit * unit;
}
template <class T>
constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));  // in channels

constexpr int kMostSources = 2;

// Part of the input's channels: dense images (batch,height,width) whose pixels are pixel_stride elements
// apart.
template <class T>
struct Source {
  const T* data;
  int channels;
  int64_t pixel_stride;
};

// Part of the weights of a convolution: element (o,i,a,b) at data[o*out_stride + i*in_stride + a*row_stride +
// b*column_stride]. Negative strides from the last tap turn the kernel round, for the gradient of the input.
template <class T>
struct WeightPart {
  const T* data;
  int64_t out_stride, in_stride, row_stride, column_stride;
  int channels;  // inputs i
  int outs;      // outputs o; for those of the convolution that are beyond, the weight is zero
};

template <class T>
struct Weights {
  WeightPart<T> parts[kMostSources];  // one for each source of the input
  int count;
  int kernel_h, kernel_w;
  int out;
  bool cudnn;  // 3K outputs, packed by groups

  // Columns of the packed weights.
  int columns() const { return cudnn ? padded(out / 3, kCudnnColumns / 3) * 3 : padded(out, kColumns); }
  // Elements of the packed weights, [part][tap][channel][column], channels padded to kDepth by zeros.
  int64_t packed_size() const {
    int64_t depth = 0;
    for (int p = 0; p < count; ++p) depth += padded(parts[p].channels, kDepth<T>);
    return depth * kernel_h * kernel_w * columns();
  }
};

template <class T>
struct Convolution {
  Source<T> sources[kMostSources];
  int source_count;
  int64_t batch;
  int height, width;
  int kernel_h, kernel_w;  // odd
  int out;
  int narrow_from;  // output channels from here on see only the first source
  const T* packed;
  int columns;  // of packed
  bool tf32;    // of float: products of inputs rounded to TF32
};

// Which samples a time step is valid for. lengths (N,) or nullptr: for all.
struct Valid {
  const int64_t* lengths;
  int64_t t;
  int64_t pixels;  // H*W, the rows of a sample
};

// What the pre-activations receive besides convolutions.
template <class T>
struct Addends {
  const T* bias_ih;      // [3K] or nullptr
  const T* bias_hh;      // [3K] or nullptr
  int direct;            // so many channels of bias_hh add directly
  const T* maps;         // gate_bias, or nullptr
  int64_t pixels;        // H*W
  int64_t image_stride;  // from one image of maps to the next
  int64_t pixel_stride;  // from one pixel of maps to the next; 0: one value for the image
};

// y = c (+ what y holds already)
template <class T>
struct StoreSums {
  T* y;  // [rows][pixel_stride]
  int64_t pixel_stride;
  bool add;
};

// "gru-rcn", first half: r, z = sigmoid(W*x + c + addends), rh = r.h.
template <class T>
struct ResetUpdate {
  int K;
  Addends<T> addends;
  T* a;       // [rows][3K] in: W*x; out: z, with keep r
  bool read;  // else W*x is part of c, that for n in the channels from 2K on, which go to a as they are
  bool keep;
  const T* h;  // [rows][K] previous state
  T* rh;       // [rows][K] out
};

// "gru-rcn", second half: n = tanh(W_n*x + c + addends), h' = (1-z).h + z.n.
template <class T>
struct Candidate {
  int K;
  Addends<T> addends;
  T* a;       // [rows][3K] in: r|z|W_n*x; out: with keep n
  bool read;  // else there is no W*x
  bool keep;
  Valid valid;
  const T* h;  // [rows][K] previous state
  T* state;    // [rows][K] out: h' where valid, else h; nullptr: only n is wanted
  T* output;   // [rows][K] out: h' where valid, else 0; may be state itself if every row is valid
};

// "cudnn": r, z = sigmoid(W*x + c + addends), q = c_n + b, n = tanh(W_n*x + addends + r.q), h' = (1-z).n +
// z.h. Gets the sums for r, z and n of a hidden channel together.
template <class T>
struct CudnnStep {
  int K;
  Addends<T> addends;
  const T* b;  // [K] b_hn, or nullptr
  const T* a;  // [rows][3K] W*x, or nullptr
  T* gates;    // [rows][4K] out: r|z|n|q, or nullptr
  Valid valid;
  const T* h;  // as in Candidate
  T* state;
  T* output;
};

// Gradient of Candidate: dh = carry + c + grad_output where valid; d_n = dh.z.(1-n^2), d_z =
// dh.(n-h).z.(1-z), carry <- dh.(1-z). Where not valid: d = 0, carry <- carry + c.
template <class T>
struct CandidateBackward {
  int K;
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
  int K;
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
  int K;
  Valid valid;
  const T* grad_output;  // [rows][K]
  const T* gates;        // [rows][4K] r|z|n|q
  const T* h;            // [rows][K] previous state
  T* carry;              // [rows][K] in and out
  T* d;                  // [rows][4K] out: d_r|d_z|d_n|d_q
};

// The states before the steps of a sequence, from its outputs: what h was. At steps past a sample's length
// whatever is there.
template <class T>
struct PreviousStates {
  int64_t steps, samples, image;  // T, N, H*W*K
  bool reverse;
  const int64_t* lengths;  // (N,) or nullptr
  const T* output;         // [T][N][image]
  const T* hx;             // [N][image] or nullptr: zeros
  T* previous;             // [T][N][image] out
};

// Images of a sequence, with zeros for those past a sample's length.
template <class T>
struct ValidImages {
  int64_t steps, samples, image;  // T, N, elements
  const int64_t* lengths;         // (N,)
  const T* from;                  // [T][N][image]
  T* to;                          // [T][N][image] out
};

// T is float, double, bfloat16 or float16. All throw std::runtime_error with CUDA's words if a kernel cannot
// be started.

template <class T>
void pack(const Weights<T>& weights, T* packed, Stream stream);

// Epilogue is one of the above; CudnnStep goes with weights of `cudnn`, the others without.
template <class T, template <class> class Epilogue>
void convolve(const Convolution<T>& convolution, const Epilogue<T>& epilogue, Stream stream);

// The epilogue of a convolution of zeros: for `channels` output channels, of CudnnStep hidden ones.
template <class T, template <class> class Epilogue>
void without_sums(int64_t rows, int channels, const Epilogue<T>& epilogue, Stream stream);

template <class T>
void previous_states(const PreviousStates<T>& arguments, Stream stream);

template <class T>
void valid_images(const ValidImages<T>& arguments, Stream stream);

}  // namespace convgru::cuda
