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

// Of a tile that is multiplied by warpgroups, of so many packed columns.
constexpr int kWarpgroupColumns = 128;
constexpr int warpgroup_columns(int columns, bool cudnn) {
  return cudnn ? kCudnnColumns : columns % kWarpgroupColumns == 0 ? kWarpgroupColumns : kColumns;
}

constexpr int padded(int count, int unit) {
  return (count + unit - 1) / unit * unit;
}
template <class T>
constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));  // in channels

constexpr int kGroup = 8;  // of 16 bits

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
  bool cudnn;          // 3K outputs, packed by groups
  bool by_warpgroups;  // packed for those

  // Columns of the packed weights.
  int columns() const { return cudnn ? padded(out / 3, kCudnnColumns / 3) * 3 : padded(out, kColumns); }
  // Elements of the packed weights, [part][channel / kDepth][tap][channel % kDepth][column], channels padded
  // to kDepth by zeros. Or by_warpgroups what a tile reads of a piece together: after the tap
  // [column / warpgroup_columns][channel % kDepth / kGroup][column % warpgroup_columns][channel % kGroup].
  int64_t packed_size() const {
    int64_t depth = 0;
    for (int p = 0; p < count; ++p) depth += padded(parts[p].channels, kDepth<T>);
    return depth * kernel_h * kernel_w * columns();
  }
};

// What is to be packed where, by one kernel.
template <class T>
struct Packing {
  struct Part {
    Weights<T> weights;
    T* packed;
    int columns;
    int64_t size;
  };
  static constexpr int kMost = 2;
  Part parts[kMost];
  int count;
  unsigned* meet;  // of a sequence that is to be run by one kernel: becomes zero; or nullptr

  void add(const Weights<T>& weights, T* packed) {
    parts[count++] = {weights, packed, weights.columns(), weights.packed_size()};
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
  int columns;         // of packed
  bool by_warpgroups;  // as it is packed
  bool tf32;           // of float: products of inputs rounded to TF32

  // Pieces of the depth, kDepth channels of one tap each, that a source has.
  constexpr int pieces(int source) const {
    return kernel_h * kernel_w * (padded(sources[source].channels, kDepth<T>) / kDepth<T>);
  }
  // Channels from its chunk of that number on, kDepth channels each, to the end of the source.
  constexpr int channels_from(int chunk) const {
    const int first = padded(sources[0].channels, kDepth<T>) / kDepth<T>;
    return chunk < first ? sources[0].channels - chunk * kDepth<T>
                         : sources[1].channels - (chunk - first) * kDepth<T>;
  }
  constexpr int all_pieces() const { return pieces(0) + (source_count > 1 ? pieces(1) : 0); }
  // Those that the columns of a tile see.
  constexpr int pieces_of_columns(int first_column) const {
    return first_column < narrow_from ? all_pieces() : pieces(0);
  }
};

// Which samples a time step is valid for. lengths (N,) or nullptr: for all.
struct Valid {
  const int64_t* lengths;
  int64_t t;
  int pixels;  // H*W, the rows of a sample
};

// What the pre-activations receive besides convolutions.
template <class T>
struct Addends {
  const T* bias_ih;      // [3K] or nullptr
  const T* bias_hh;      // [3K] or nullptr
  int direct;            // so many channels of bias_hh add directly
  const T* maps;         // gate_bias, or nullptr
  int pixels;            // H*W
  int64_t image_stride;  // from one image of maps to the next
  int64_t pixel_stride;  // from one pixel of maps to the next; 0: one value for the image
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

// "gru-rcn", second half: n = tanh(W_n*x + c + addends) or relu(...), h' = (1-z).h + z.n.
template <class T>
struct Candidate {
  bool relu;
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

// Gradient of Candidate: dh = carry + c + grad_output where valid; d_n = dh.z.(1-n^2), or dh.z where n > 0,
// d_z = dh.(n-h).z.(1-z), carry <- dh.(1-z). Where not valid: d = 0, carry <- carry + c. Without `carries`,
// carry counts as zero before. With `ends` only carry <- carry + c: there is no step before.
template <class T>
struct CandidateBackward {
  bool relu;
  int K;
  Valid valid;
  const T* grad_output;  // [rows][K]
  const T* gates;        // [rows][3K] r|z|n
  const T* h;            // [rows][K] previous state
  bool carries, ends;
  T* carry;  // [rows][K] in and out
  T* d;      // [rows][3K] out: z and n of the pre-activation gradients r|z|n
  T* d_rz;   // [rows][2K] out: z once more, among r|z,
  T* d_n;    // [rows][K] out: and n: what the next convolutions read
};

// Gradient of ResetUpdate, with c the gradient of rh: d_r = c.h.r.(1-r), carry <- carry + c.r.
template <class T>
struct ResetUpdateBackward {
  int K;
  const T* gates;  // [rows][3K] r|z|n
  const T* h;      // [rows][K] previous state
  T* carry;        // [rows][K] in and out
  T* d;            // [rows][3K] out: d_r
  T* d_rz;         // [rows][2K] out: the same
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
  bool carries, ends;
  T* carry;   // [rows][K] in and out
  T* d;       // [rows][3K] out: d_r|d_z|d_n
  T* hidden;  // [rows][3K] out: d_r|d_z|d_q, what the next convolution reads
};

// Epilogues that get the sums of three gates at once.
template <class Epilogue>
constexpr bool kThreeGates = false;
template <class T>
constexpr bool kThreeGates<CudnnStep<T>> = true;

// A convolution and what becomes of its sums; zeros: instead of its sums.
template <class T, class Epilogue>
struct Phase {
  Convolution<T> conv;
  bool zeros;
  Epilogue epilogue;
};

// Sequences: all steps of a call. Each step is one phase or two, `kPhases`; phase<p>(i) is what it is in the
// i-th step that is done; if steps.ends, phase<0>(count) comes after all. Convolutions and epilogues are
// given as they would be at the time 0.

// Where the steps of a forward sequence find their buffers.
template <class T>
struct ForwardSteps {
  static constexpr bool ends = false;
  int64_t count;
  bool reverse;
  const T* hx;    // [rows][K] or nullptr: zeros
  T* outputs;     // [T][rows][K]
  T* carried[2];  // with lengths: where the states go, in turn; else nullptr: they are the outputs
  int64_t state;  // elements from one time to the next: of outputs,
  int64_t a;      // of W*x,
  int64_t gates;  // of the gates of "cudnn",
  int64_t maps;   // of gate_bias

  constexpr int64_t time(int64_t i) const { return reverse ? count - 1 - i : i; }
  constexpr T* output(int64_t i) const { return outputs + time(i) * state; }
  constexpr T* state_after(int64_t i) const {
    if (carried[0] == nullptr) return output(i);
    return i % 2 == 0 ? carried[0] : carried[1];
  }
  constexpr const T* state_before(int64_t i) const { return i == 0 ? hx : state_after(i - 1); }
  constexpr Addends<T> addends(const Addends<T>& first, int64_t i) const {
    Addends<T> those = first;
    if (those.maps != nullptr) those.maps += time(i) * maps;
    return those;
  }
  // The convolution with the state before a step as its last source.
  constexpr Convolution<T> of_state(const Convolution<T>& conv, int64_t i) const {
    Convolution<T> that = conv;
    // No index that is known only when it runs: `that` is to be registers.
    that.sources[0].data = conv.source_count == 1 ? state_before(i) : conv.sources[0].data;
    that.sources[1].data = state_before(i);
    return that;
  }
};

template <class T>
struct GruRcnForward {
  static constexpr const char* kName = "gru-rcn forward";
  static constexpr int kPhases = 2;
  ForwardSteps<T> steps;
  Convolution<T> convolutions[kPhases];
  ResetUpdate<T> reset_update;
  Candidate<T> candidate;
  unsigned* meet;  // zero when run_sequence begins

  template <int kPhase>
  constexpr auto phase(int64_t i) const {
    const int64_t t = steps.time(i);
    const bool zeros = steps.state_before(i) == nullptr;
    if constexpr (kPhase == 0) {
      ResetUpdate<T> step = reset_update;
      step.addends = steps.addends(step.addends, i);
      step.a += t * steps.a;
      step.h = steps.state_before(i);
      return Phase<T, ResetUpdate<T>>{steps.of_state(convolutions[0], i), zeros, step};
    } else {
      Candidate<T> step = candidate;
      step.addends = steps.addends(step.addends, i);
      step.a += t * steps.a;
      step.valid.t = t;
      step.h = steps.state_before(i);
      step.state = steps.state_after(i);
      step.output = steps.output(i);
      return Phase<T, Candidate<T>>{convolutions[1], zeros, step};
    }
  }
};

template <class T>
struct CudnnForward {
  static constexpr const char* kName = "cudnn forward";
  static constexpr int kPhases = 1;
  ForwardSteps<T> steps;
  Convolution<T> convolutions[kPhases];
  CudnnStep<T> all;
  unsigned* meet;

  template <int kPhase>
  constexpr auto phase(int64_t i) const {
    const int64_t t = steps.time(i);
    CudnnStep<T> step = all;
    step.addends = steps.addends(step.addends, i);
    if (step.a != nullptr) step.a += t * steps.a;
    if (step.gates != nullptr) step.gates += t * steps.gates;
    step.valid.t = t;
    step.h = steps.state_before(i);
    step.state = steps.state_after(i);
    step.output = steps.output(i);
    return Phase<T, CudnnStep<T>>{steps.of_state(convolutions[0], i), step.h == nullptr, step};
  }
};

// The steps of a backward sequence, the last first. What a step adds to the gradient of the state before it
// is the sum of a convolution, so the step before begins in that convolution's epilogue.
struct BackwardSteps {
  int64_t count;
  bool reverse;
  bool has_hx;  // else nothing flows further from the first step
  bool ends;    // after the steps, what the first adds to the gradient of the state before it
  int64_t rows;

  constexpr int64_t time(int64_t i) const { return reverse ? i : count - 1 - i; }
  // Rows before those of the i-th step that is done.
  constexpr int64_t row(int64_t i) const { return time(i) * rows; }
};

template <class T>
constexpr Convolution<T> moved(const Convolution<T>& conv, int64_t elements) {
  Convolution<T> that = conv;
  that.sources[0].data += elements;
  return that;
}

// What every epilogue that begins a step backwards reads and writes, moved to the i-th step, or after the
// last; gates: of K channels, that are kept.
template <class Epilogue>
constexpr Epilogue at_backward_step(
    const BackwardSteps& steps, const Epilogue& first, int64_t state, int gates, int64_t i) {
  Epilogue step = first;
  step.carries = i > 0;
  step.ends = i == steps.count;
  if (step.ends) return step;
  step.valid.t = steps.time(i);
  step.grad_output += state;
  step.gates += gates * state;
  step.h += state;
  step.d += 3 * state;
  return step;
}

template <class T>
struct GruRcnBackward {
  static constexpr const char* kName = "gru-rcn backward";
  static constexpr int kPhases = 2;
  BackwardSteps steps;
  Convolution<T> convolutions[kPhases];  // of d_rz, of d_n
  CandidateBackward<T> candidate;
  ResetUpdateBackward<T> reset_update;
  unsigned* meet;

  template <int kPhase>
  constexpr auto phase(int64_t i) const {
    const int64_t state = i < steps.count ? steps.row(i) * candidate.K : 0;
    if constexpr (kPhase == 0) {
      CandidateBackward<T> step = at_backward_step(steps, candidate, state, 3, i);
      step.d_rz += 2 * state;
      step.d_n += state;
      const int64_t after = i == 0 ? 0 : steps.row(i - 1) * 2 * candidate.K;
      return Phase<T, CandidateBackward<T>>{moved(convolutions[0], after), i == 0, step};
    } else {
      ResetUpdateBackward<T> step = reset_update;
      step.gates += 3 * state;
      step.h += state;
      step.d += 3 * state;
      step.d_rz += 2 * state;
      if (step.rh != nullptr) step.rh += state;
      const bool zeros = i == steps.count - 1 && !steps.has_hx;
      return Phase<T, ResetUpdateBackward<T>>{moved(convolutions[1], state), zeros, step};
    }
  }
};

template <class T>
struct CudnnBackward {
  static constexpr const char* kName = "cudnn backward";
  static constexpr int kPhases = 1;
  BackwardSteps steps;
  Convolution<T> convolutions[kPhases];  // of hidden
  CudnnStepBackward<T> all;
  unsigned* meet;

  template <int kPhase>
  constexpr auto phase(int64_t i) const {
    const int64_t state = i < steps.count ? steps.row(i) * all.K : 0;
    CudnnStepBackward<T> step = at_backward_step(steps, all, state, 4, i);
    step.hidden += 3 * state;
    const int64_t after = i == 0 ? 0 : steps.row(i - 1) * 3 * all.K;
    return Phase<T, CudnnStepBackward<T>>{moved(convolutions[0], after), i == 0, step};
  }
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

// Matrices: to[b][c][r] = from[b][r][c].
template <class T>
struct Transpose {
  int64_t batch, rows, columns;
  const T* from;  // [batch][rows][columns]
  T* to;          // [batch][columns][rows] out
};

// Those of one kernel.
template <class T>
struct Transposes {
  static constexpr int kMost = 6;
  Transpose<T> each[kMost];
  int count;
};

// T is float, double, bfloat16 or float16. All throw std::runtime_error with CUDA's words if a kernel cannot
// be started.

template <class T>
void pack(const Packing<T>& packing, Stream stream);

// Whether the GPU has the matrix units that warpgroups use, and the kernels were built for them, and the
// convolutions of such images are to be done by them: of so many rows, and output channels at most.
bool suits_warpgroups(int64_t rows, int width, int kernel_h, int kernel_w, int64_t out);

// Epilogue is one of the above; CudnnStep goes with weights of `cudnn`, the others without.
template <class T, template <class> class Epilogue>
void convolve(const Convolution<T>& convolution, const Epilogue<T>& epilogue, Stream stream);

// The epilogue alone, for `channels` output channels, of CudnnStep hidden ones. sums: of a convolution,
// [rows][channels], for CudnnStep [rows][3 channels] r|z|n; nullptr: zeros.
template <class T, template <class> class Epilogue>
void elementwise(int64_t rows, int channels, const T* sums, const Epilogue<T>& epilogue, Stream stream);

// How a sequence is one kernel, whose blocks are all there at the same time, keep their weights on the chip
// for all steps and wait for each other after every phase.
struct SequencePlan {
  int config;      // of the kernel, by its number
  int columns[2];  // of a tile of each phase
  int across[2];   // tiles of columns of each phase
  int down;        // blocks for each of them; 0: it is not one kernel
  int tiles;       // of a block, at most, one after the other
  size_t shared_bytes;
  int threads, stages;  // of a block; of its ring of windows

  // A block has a part in both phases.
  int blocks() const { return (across[0] > across[1] ? across[0] : across[1]) * down; }
};

// It is not one kernel if it does not fit the GPU or has too many pixels to gain by it.
template <class T, template <class> class Sequence>
SequencePlan sequence_plan(const Sequence<T>& sequence);

// Runs a sequence that is one kernel, by its plan.
template <class T, template <class> class Sequence>
void run_sequence(const Sequence<T>& sequence, const SequencePlan& plan, Stream stream);

template <class T>
void previous_states(const PreviousStates<T>& arguments, Stream stream);

template <class T>
void valid_images(const ValidImages<T>& arguments, Stream stream);

template <class T>
void transpose(const Transposes<T>& arguments, Stream stream);

}  // namespace convgru::cuda
