// The recurrence on a GPU. Inside, everything is channels last: (T,N,H,W,channels).
#pragma once
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../problem.h"
#include "device.h"
#include "kernels.h"
#include "library.h"

namespace convgru::cuda {

// How the steps of a sequence are run: by one kernel for all of them; or for each of its convolutions by
// PyTorch's library and a kernel for what follows; or by one of our kernels for both, which multiplies by
// warps or by warpgroups.
enum class Way { kOneKernel, kLibrary, kKernels, kWarpgroups };

// A transposition that is to be done, of every matrix in the last dimensions of `from`, rows x columns.
struct WaitingTranspose {
  Tensor from, to;
  int64_t rows, columns;
};

// What one call is about, and where it runs.
struct Call {
  Arguments arguments;
  Problem p;
  bool tf32;
  Stream stream;
  bool captured;  // in a graph, instead of run
  bool backward;
  bool may_be_warpgroups = false;         // can_be_warpgroups, asked once
  std::optional<Way> way = std::nullopt;  // if it was measured; it is not taken where it cannot be
  mutable std::vector<WaitingTranspose> waiting = {};  // for finish_transposes

  const Tensor& weight_hh() const { return arguments.weight_hh; }
  Tensor empty(const Shape& shape) const { return new_tensor(weight_hh(), shape); }
  Valid valid(int64_t t) const { return {p.lengths, t, static_cast<int>(p.pixels())}; }
};

// Does the transpositions that wait, by one kernel. Before anything else reads what they write.
template <class T>
void finish_transposes(const Call& call) {
  if (call.waiting.empty()) return;
  Transposes<T> all{};
  for (const auto& [from, to, rows, columns] : call.waiting)
    all.each[all.count++] = {
        from.numel() / (rows * columns), rows, columns, data<const T>(from), data<T>(to)};
  transpose(all, call.stream);
  call.waiting.clear();
}

// Has every matrix in the last dimensions of `from`, rows x columns, transposed to `to`, until
// finish_transposes.
template <class T>
void transpose_to(const Call& call, const Tensor& to, const Tensor& from, int64_t rows, int64_t columns) {
  const auto writes = [&](const WaitingTranspose& other) { return other.to.data_ptr() == from.data_ptr(); };
  if (call.waiting.size() == Transposes<T>::kMost ||
      std::any_of(call.waiting.begin(), call.waiting.end(), writes))
    finish_transposes<T>(call);
  call.waiting.push_back({from, to, rows, columns});
}

// Copies images (...,C,H,W) to memory (...,H,W,C); perhaps later, as transpose_to.
template <class T>
void copy_channels_last(const Call& call, const Tensor& images, Tensor memory) {
  const int64_t dim = images.dim(), channels = images.size(dim - 3);
  if (images.numel() == 0) return;
  if (!is_channels_last(images) && images.is_contiguous())
    transpose_to<T>(call, memory, images, channels, images.size(dim - 2) * images.size(dim - 1));
  else
    stable::copy_(memory, channels_last_view(images));
}

// (...,C,H,W) as memory (...,H,W,C), copied unless it lies so already; perhaps later.
template <class T>
Tensor channels_last_memory(const Call& call, const Tensor& images) {
  const Tensor view = channels_last_view(images);
  if (view.is_contiguous()) return view;
  const Tensor memory = call.empty(sizes(view));
  copy_channels_last<T>(call, images, memory);
  return memory;
}

// The same of a sequence (T,N,C,H,W), with zeros past a sample's length, whatever the caller has there.
template <class T>
Tensor valid_memory(const Call& call, const Tensor& images) {
  const Tensor memory = channels_last_memory<T>(call, images);
  if (call.p.lengths == nullptr) return memory;
  const Tensor valid = call.empty(sizes(memory));
  finish_transposes<T>(call);
  valid_images(
      ValidImages<T>{
          call.p.T, call.p.N, memory.numel() / (call.p.T * call.p.N), call.p.lengths, data<const T>(memory),
          data<T>(valid)},
      call.stream);
  return valid;
}

// memory (...,H,W,C) as the (...,C,H,W) that the caller sees; perhaps later.
template <class T>
Tensor as_images(const Call& call, const Tensor& memory, bool channels_last) {
  const Tensor view = channels_first_view(memory);
  if (channels_last) return view;
  if (view.is_contiguous()) return reshaped(view, sizes(view));
  const Tensor images = call.empty(sizes(view));
  const int64_t dim = memory.dim();
  transpose_to<T>(call, images, memory, memory.size(dim - 3) * memory.size(dim - 2), memory.size(dim - 1));
  return images;
}

// memory (T,N,H,W,C) as images (T*N,C,H,W) that are channels last, without a copy.
inline Tensor flat_images(const Tensor& memory) {
  const int64_t H = memory.size(2), W = memory.size(3), C = memory.size(4);
  return reshaped(memory, {memory.size(0) * memory.size(1), C, H, W}, {H * W * C, 1, W * C, C});
}

template <class T>
const T* data_or_null(const Optional& tensor) {
  return tensor.has_value() ? data<const T>(*tensor) : nullptr;
}

// Rows [first, first+count) of a weight (O,I,kh,kw), as they convolve their inputs ...
template <class T>
WeightPart<T> rows_of(const Tensor& weight, int64_t first, int64_t count) {
  return {
      data<const T>(weight) + first * weight.stride(0),
      weight.stride(0),
      weight.stride(1),
      weight.stride(2),
      weight.stride(3),
      static_cast<int>(weight.size(1)),
      static_cast<int>(count)};
}

// ... and as the gradient of their outputs goes back to the inputs.
template <class T>
WeightPart<T> transposed_rows_of(const Tensor& weight, int64_t first, int64_t count) {
  const WeightPart<T> part = rows_of<T>(weight, first, count);
  return {
      part.data + (weight.size(2) - 1) * part.row_stride + (weight.size(3) - 1) * part.column_stride,
      part.in_stride,
      part.out_stride,
      -part.row_stride,
      -part.column_stride,
      static_cast<int>(count),
      static_cast<int>(weight.size(1))};
}

// Whether the hidden convolutions of a call can be done by warpgroups.
inline bool can_be_warpgroups(const Call& call) {
  const Tensor& weight = call.weight_hh();
  const auto dtype = weight.scalar_type();
  using torch::headeronly::ScalarType;
  return (dtype == ScalarType::BFloat16 || dtype == ScalarType::Half) &&
         suits_warpgroups(
             call.p.rows(), static_cast<int>(call.p.W), static_cast<int>(weight.size(2)),
             static_cast<int>(weight.size(3)), weight.size(0));
}

// Whether they are, unless all steps are one kernel.
inline bool prefers_warpgroups(const Call& call) {
  return call.way.value_or(Way::kWarpgroups) == Way::kWarpgroups && call.may_be_warpgroups;
}

// Whether the hidden convolutions of a call are left to PyTorch's library, unless all steps are one kernel:
// where they are long, it makes up for what goes to memory and back between them and their epilogues.
inline bool prefers_library(const Call& call) {
  const Tensor& weight = call.weight_hh();
  if (weight.scalar_type() == torch::headeronly::ScalarType::Double) return false;
  if (call.way.has_value()) return *call.way == Way::kLibrary;
  if (prefers_warpgroups(call)) return false;
  const double operations_of_step = 2.0 * call.p.rows() * weight.numel();
  return operations_of_step >= least_operations_of_library(call.p.T);
}

// Whether a kernel for all steps has more than one convolution to do: a single step of "cudnn" has one, and
// none without a state.
inline bool has_work_for_one_kernel(const Call& call) {
  return call.p.T > 1 || (!call.p.cudnn && call.arguments.hx.has_value());
}

// Whether it is tried. What the library would do of a single step is too much for it.
inline bool may_be_one_kernel(const Call& call) {
  if (!has_work_for_one_kernel(call)) return false;
  if (call.way.has_value()) return *call.way == Way::kOneKernel;
  return call.p.T > 1 || !prefers_library(call);
}

// Tiles that a block may have, one after the other, before another way is faster: kernels that have all
// pixels at once for a single step backwards, which begins without a convolution, or the library.
inline int most_tiles(const Call& call) {
  if (call.p.T == 1 && call.backward) return 1;
  return prefers_library(call) || prefers_warpgroups(call) ? 2 : INT_MAX;
}

// Rows of the hidden weight; transposed: as the gradient of their outputs goes back to the inputs.
struct HiddenRows {
  int64_t first, count;
  bool transposed;
};

// A convolution by rows of the hidden weight, of images of this call: its weights packed for our kernels, or
// PyTorch's library.
template <class T>
class PreparedConvolution {
 public:
  PreparedConvolution(const Call& call, const HiddenRows& rows)
      : PreparedConvolution(
            call, rows,
            {rows.transposed ? transposed_rows_of<T>(call.weight_hh(), rows.first, rows.count)
                             : rows_of<T>(call.weight_hh(), rows.first, rows.count)},
            rows.transposed ? call.p.K : rows.count) {}

  // With parts before that of these rows; output channels beyond those of the rows see only the first.
  PreparedConvolution(
      const Call& call, const HiddenRows& rows, const std::vector<WeightPart<T>>& parts, int64_t out)
      : call_(call), rows_(rows), narrow_from_(static_cast<int>(parts.size() > 1 ? rows.count : out)) {
    const Tensor& weight = call.weight_hh();
    weights_ = {
        {},
        static_cast<int>(parts.size()),
        static_cast<int>(weight.size(2)),
        static_cast<int>(weight.size(3)),
        static_cast<int>(out),
        call.p.cudnn && !rows.transposed,
        prefers_warpgroups(call)};
    std::copy(parts.begin(), parts.end(), weights_.parts);
    if (may_be_one_kernel(call) || !prefers_library(call)) packed_ = call.empty({weights_.packed_size()});
  }

  Convolution<T> of(int64_t batch, const std::vector<Source<T>>& sources) const {
    const Problem& p = call_.p;
    Convolution<T> conv{
        {},
        static_cast<int>(sources.size()),
        batch,
        static_cast<int>(p.H),
        static_cast<int>(p.W),
        weights_.kernel_h,
        weights_.kernel_w,
        weights_.out,
        narrow_from_,
        data_or_null<T>(packed_),
        weights_.columns(),
        weights_.by_warpgroups,
        call_.tf32};
    std::copy(sources.begin(), sources.end(), conv.sources);
    return conv;
  }

  // To be packed before our kernels run what `of` returns, one kernel for all steps or many ...
  void add_to(Packing<T>& packing, bool one_kernel) const {
    Weights<T> weights = weights_;
    weights.by_warpgroups &= !one_kernel;
    packing.add(weights, data<T>(*packed_));
  }

  // ... or else the library's.
  void use_library() {
    Tensor weight = call_.weight_hh();
    const Tensor rows = stable::narrow(weight, 0, rows_.first, rows_.count);
    // The library would copy it at every step.
    library_weight_ = call_.p.T == 1 ? rows : channels_first_view(as_contiguous(channels_last_view(rows)));
  }

  // A phase whose convolution is this.
  template <class Epilogue>
  void run(const Phase<T, Epilogue>& phase) const {
    constexpr int kGates = kThreeGates<Epilogue> ? 3 : 1;
    const Convolution<T>& conv = phase.conv;
    const int64_t rows = conv.batch * conv.height * conv.width;
    if (phase.zeros) return elementwise<T>(rows, conv.out / kGates, nullptr, phase.epilogue, call_.stream);
    if (!library_weight_.has_value()) return convolve(conv, phase.epilogue, call_.stream);
    const Tensor sums =
        channels_last_memory<T>(call_, convolution(images_of(conv), *library_weight_, rows_.transposed));
    finish_transposes<T>(call_);
    elementwise(rows, conv.out / kGates, data<const T>(sums), phase.epilogue, call_.stream);
  }

 private:
  // What a convolution of one dense source reads, (batch,channels,H,W).
  Tensor images_of(const Convolution<T>& conv) const {
    const Source<T>& source = conv.sources[0];
    const int64_t C = source.channels, H = conv.height, W = conv.width;
    const Shape shape{conv.batch, C, H, W}, strides{H * W * C, 1, W * C, C};
    return stable::from_blob(
        const_cast<T*>(source.data), shape, strides, call_.weight_hh().device(),
        call_.weight_hh().scalar_type());
  }

  const Call& call_;
  HiddenRows rows_;
  int narrow_from_;
  Weights<T> weights_{};
  Optional packed_, library_weight_;
};

// Before they are run. With `meet` by run_sequence, whose counter that is.
template <class T>
void prepare_weights(
    const Call& call, const std::vector<PreparedConvolution<T>*>& convolutions, unsigned* meet = nullptr) {
  finish_transposes<T>(call);
  if (meet == nullptr && prefers_library(call)) {
    for (PreparedConvolution<T>* convolution : convolutions) convolution->use_library();
    return;
  }
  Packing<T> packing{};
  for (const PreparedConvolution<T>* convolution : convolutions)
    convolution->add_to(packing, meet != nullptr);
  packing.meet = meet;
  pack(packing, call.stream);
}

template <class T>
Source<T> source(const T* images, int64_t channels, int64_t pixel_stride) {
  return {images, static_cast<int>(channels), pixel_stride};
}

// Memory for run_sequence.
template <class T>
Tensor meeting_place(const Call& call) {
  constexpr size_t kElements = sizeof(unsigned) / std::min(sizeof(unsigned), sizeof(T));
  return call.empty({may_be_one_kernel(call) ? static_cast<int64_t>(kElements) : 0});
}

// "K=32 5x9, kernel 3x5, Float as TF32".
inline std::string problem_text(const Call& call) {
  const Tensor& weight = call.weight_hh();
  std::ostringstream text;
  text << "K=" << call.p.K << " " << call.p.H << "x" << call.p.W << ", kernel " << weight.size(2) << "x"
       << weight.size(3) << ", " << torch::headeronly::toString(weight.scalar_type());
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float && call.tf32) text << " as TF32";
  return text.str();
}

// Whether an environment variable is "1".
inline bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string(value) == "1";
}

// With CONVGRU_FUSED_VERBOSE=1, how a sequence is run: a line on standard error.
template <class T, template <class> class Sequence>
void say_how(const Call& call, const SequencePlan& plan) {
  if (!is_set("CONVGRU_FUSED_VERBOSE")) return;
  std::ostringstream line;
  line << "convgru_fused: " << Sequence<T>::kName << ", T=" << call.p.T << " N=" << call.p.N << " "
       << problem_text(call) << ": ";
  if (plan.down > 0)
    line << "one kernel, " << plan.blocks() << " blocks of " << plan.threads << " threads, tiles of "
         << plan.columns[0] << " and " << plan.columns[1] << " columns, " << plan.stages << " stages, "
         << plan.shared_bytes << " bytes of shared memory";
  else
    line << "kernels for every step, convolutions by "
         << (prefers_library(call)      ? "PyTorch's library"
             : prefers_warpgroups(call) ? "our own of warpgroups"
                                        : "our own");
  std::fprintf(stderr, "%s\n", line.str().c_str());
}

// By one kernel if that can be, else phase by phase. convolutions: those of the phases of a step.
template <class T, template <class> class Sequence>
void run(
    const Call& call, const Sequence<T>& sequence, const std::vector<PreparedConvolution<T>*>& convolutions) {
  const int64_t count = sequence.steps.count;
  SequencePlan plan = may_be_one_kernel(call) ? sequence_plan(sequence) : SequencePlan{};
  if (plan.tiles > most_tiles(call)) plan = {};
  const bool at_once = plan.down > 0;
  say_how<T, Sequence>(call, plan);
  prepare_weights(call, convolutions, at_once ? sequence.meet : nullptr);
  if (at_once) return run_sequence(sequence, plan, call.stream);
  for (int64_t i = 0; i < count; ++i) {
    convolutions[0]->run(sequence.template phase<0>(i));
    if constexpr (Sequence<T>::kPhases == 2) convolutions[1]->run(sequence.template phase<1>(i));
  }
  if (sequence.steps.ends) convolutions[0]->run(sequence.template phase<0>(count));
}

// What the gates receive from outside the recurrence: W*x, for all steps at once, and the addends.
template <class T>
class OutsideGates {
 public:
  // convolves: W*x is wanted here.
  OutsideGates(const Call& call, bool convolves);

  // (T*N,H,W,3K), if there is an input and it is wanted.
  const Optional& convolved() const { return convolved_; }

  // Of the first time.
  Addends<T> addends() const;
  // Elements from one time to the next: of convolved, of the addends' maps.
  int64_t convolved_step() const { return convolved_.has_value() ? call_.p.rows() * 3 * call_.p.K : 0; }
  int64_t maps_step() const { return call_.p.N * maps_image(); }

 private:
  int64_t maps_image() const { return (full_maps_ ? call_.p.pixels() : 1) * 3 * call_.p.K; }

  const Call& call_;
  Optional convolved_, maps_;
  bool full_maps_ = false;
};

// The gates of all steps, computed again from the states (T,N,H,W,K) before them: what forward saves.
template <class T>
Tensor recomputed_gates(const Call& call, const Tensor& previous);

template <class T>
std::tuple<Tensor, Tensor> forward(const Call& call, bool save_gates);

template <class T>
Gradients backward(
    const Call& call, const Tensor& grad_output, const Tensor& output, const Tensor& gates,
    const std::vector<bool>& wanted);

}  // namespace convgru::cuda
