#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace convgru::cpu {
namespace {

constexpr const char* kVariable = "CONVGRU_FUSED_CPU_ALGORITHM";
constexpr Algorithm kAlgorithms[] = {Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd4};

// Of the second-level cache, for the panel and the products of a block of tiles.
constexpr int64_t kPanelBytes = 400 << 10;
// Of the third-level cache, for the panels of a chunk of a weight gradient, of one of its slices, and for the
// sums of all slices.
constexpr int64_t kGradientPanelBytes = 4 << 20;
constexpr int64_t kSlicePanelBytes = 2 << 20;
constexpr int64_t kSliceSumBytes = 12 << 20;
// Tiles that are worth a slice.
constexpr int64_t kSliceTiles = 64;
constexpr int64_t kMostSlices = 16;
// Rows of such a panel that are multiplied with all output channels one after the other, so that they stay in
// the second-level cache.
constexpr int64_t kGradientRows = 112;
// Below so many tiles a product reads its weights more often than it is worth, even if the panel does not
// fit.
constexpr int64_t kFewestTiles = 42;
// With fewer tiles for each thread the output channels are divided among the threads instead.
constexpr int64_t kSplitTiles = 14;
// A packed weight is used about as often as there are pixels; packing it costs as much as some tens of uses.
constexpr int64_t kInPlacePixels = 128;
// The buffers of the steps that are worked on together are to stay in cache, but the packed weights of the
// input, which have to be read once for them, must not be more than they are.
constexpr int64_t kChunkBytes = 2 << 20;
constexpr int64_t kPackedBytes = 16;  // of a weight, in Winograd's transformed form
// Multiply-adds below which a second thread does not pay for being woken.
constexpr int64_t kSerialWork = 100000;

// What a convolution costs, in multiply-adds of the products; fitted to what benchmarks/cpu_algorithms.py
// measures.
constexpr double kTransformCost = 2.5;  // for every element of a panel and of the products
constexpr double kWeightCost = 8;  // to bring an element of the packed weights from beyond the second-level
                                   // cache; three times for the sums of a weight gradient, which come and go
                                   // and are transformed

double cost(Algorithm algorithm, const ConvolutionShape& s, bool weight_gradient) {
  const Scheme scheme = scheme_of(algorithm, s.kernel_h, s.kernel_w);
  const double tiles = double(s.batch) * scheme.tiles_h(s.height) * scheme.tiles_w(s.width);
  const double positions = scheme.direct() ? s.kernel_h * s.kernel_w : scheme.positions();
  const double used =
      scheme.direct() ? tiles * positions : double(s.batch) * scheme.used_positions(s.height, s.width);
  const double weights = positions * s.in * s.out;
  const double transforms = tiles * positions * (s.in + s.out) * kTransformCost;
  return used * s.in * s.out + transforms + (weight_gradient ? 3 : 1) * weights * kWeightCost;
}

bool is_line(const ConvolutionShape& s) {
  return (s.kernel_h == 1 && s.kernel_w == 5) || (s.kernel_h == 5 && s.kernel_w == 1);
}

bool exists(Algorithm algorithm, const ConvolutionShape& s, Numerics numerics) {
  if (algorithm == Algorithm::kDirect) return true;
  if (numerics.double_precision) return false;
  const bool square = s.kernel_h == 3 && s.kernel_w == 3;
  return algorithm == Algorithm::kWinograd2 ? square : square || is_line(s);
}

// Whether the error of an algorithm, over 50 steps, is at most 2.5 times (largest) and twice (rms) PyTorch's
// (tests/test_precision.py).
bool is_strict(Algorithm algorithm) {
  return algorithm != Algorithm::kWinograd4;
}

}  // namespace

const char* algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kWinograd2:
      return "winograd2";
    case Algorithm::kWinograd4:
      return "winograd4";
    default:
      return "direct";
  }
}

Scheme scheme_of(Algorithm algorithm, int64_t kernel_h, int64_t kernel_w) {
  if (algorithm == Algorithm::kDirect) return {algorithm, 1, 1, 0, 0};
  const int outputs = algorithm == Algorithm::kWinograd4 ? 4 : 2;
  return {
      algorithm, kernel_h > 1 ? outputs : 1, kernel_w > 1 ? outputs : 1, static_cast<int>(kernel_h),
      static_cast<int>(kernel_w)};
}

Algorithm choose_algorithm(const ConvolutionShape& shape, Numerics numerics, bool weight_gradient) {
  if (numerics.only_direct) return Algorithm::kDirect;
  if (const char* wanted = std::getenv(kVariable)) {
    const auto* found = std::find_if(std::begin(kAlgorithms), std::end(kAlgorithms), [&](Algorithm a) {
      return std::string(wanted) == algorithm_name(a);
    });
    if (found == std::end(kAlgorithms))
      throw std::runtime_error(
          std::string(kVariable) + ": expected direct, winograd2 or winograd4, got " + wanted);
    return exists(*found, shape, numerics) ? *found : Algorithm::kDirect;
  }
  Algorithm best = Algorithm::kDirect;
  for (const Algorithm algorithm : {Algorithm::kWinograd2, Algorithm::kWinograd4}) {
    if (!exists(algorithm, shape, numerics)) continue;
    if (!numerics.fast && !is_strict(algorithm)) continue;
    if (cost(algorithm, shape, weight_gradient) < cost(best, shape, weight_gradient)) best = algorithm;
  }
  return best;
}

bool reads_weights_in_place(const ConvolutionShape& s) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.batch * s.height * s.width <= kInPlacePixels;
}

bool is_serial(int64_t multiply_adds) {
  return multiply_adds < kSerialWork;
}

Work plan_work(
    const Scheme& scheme, const ConvolutionShape& shape, int64_t itemsize, int64_t threads,
    int64_t channel_unit) {
  Work work{shape.batch, shape.height, shape.width, shape.kernel_h, shape.kernel_w, 1, 1, channel_unit};
  const int64_t tiles = std::max<int64_t>(1, work.tiles(scheme));
  const int64_t depth = scheme.direct() ? shape.kernel_h * shape.kernel_w * shape.in : shape.in;
  const int64_t most =
      std::max(kFewestTiles, kPanelBytes / (scheme.positions() * (depth + 48) * itemsize) / 14 * 14);
  if (is_serial(tiles * scheme.positions() * depth * shape.out)) threads = 1;
  // As many blocks for every thread, and then as large as the cache allows.
  int64_t blocks = (tiles + most - 1) / most;
  blocks = (blocks + threads - 1) / threads * threads;
  work.tiles_per_block = (tiles + blocks - 1) / blocks;
  if (threads > 1 && work.tiles_per_block < kSplitTiles) {
    work.tiles_per_block = std::min(most, tiles);
    work.channel_splits = std::max<int64_t>(1, std::min(threads, shape.out / channel_unit));
  }
  return work;
}

void plan_gradient(
    const Scheme& scheme, int64_t itemsize, int64_t channel_block, int64_t threads, GradientWork& work) {
  const int64_t tiles = std::max<int64_t>(1, work.tiles(scheme)), taps = work.taps(scheme);
  const int64_t bytes = scheme.positions() * (taps * work.in + work.out) * itemsize;
  int64_t sums = 0;
  for (const GradientTerm* term = work.terms; term != work.terms + work.term_count; ++term)
    sums += gradient_sums(scheme, *term, channel_block, taps);
  // Neither slices nor chunks may depend on the number of threads.
  const int64_t most_slices =
      std::min({kMostSlices, kSliceSumBytes / (sums * itemsize), tiles / kSliceTiles});
  for (work.slices = 1; 2 * work.slices <= most_slices;) work.slices *= 2;
  const int64_t slice = (tiles + work.slices - 1) / work.slices;
  const int64_t most = work.slices > 1
                           ? std::clamp<int64_t>(kSlicePanelBytes / bytes, 32, 1024)
                           : std::clamp<int64_t>(kGradientPanelBytes / bytes / 64 * 64, 128, 1024);
  const int64_t chunks = (slice + most - 1) / most;
  work.tiles_per_chunk = (slice + chunks - 1) / chunks;
  for (GradientTerm* term = work.terms; term != work.terms + work.term_count; ++term) {
    const int64_t products = scheme.positions() * blocks_of(*term, channel_block).count;
    const int64_t rows = taps * term->in, for_threads = (4 * threads + products - 1) / products;
    term->row_splits = std::clamp<int64_t>(
        std::max((rows + kGradientRows - 1) / kGradientRows, for_threads), 1, (rows + 13) / 14);
  }
}

RecurrencePlan plan_recurrence(const RecurrenceShape& s) {
  const int64_t rows = s.N * s.H * s.W;
  const int64_t weights = 3 * s.K * s.C * s.input_kernel_h * s.input_kernel_w;
  const int64_t bytes = std::max(kChunkBytes, 2 * kPackedBytes * weights);
  const auto steps = [&](int64_t channels) {
    return std::clamp<int64_t>(
        bytes / std::max<int64_t>(1, rows * channels * s.itemsize), 1, std::max<int64_t>(1, s.T));
  };
  RecurrencePlan plan{steps(3 * s.K + s.C), steps((s.cudnn ? 7 : 6) * s.K + s.C), false};
  plan.joined = plan.forward_steps == 1 && (s.T > 1 || s.has_hx) && !s.cudnn && s.C > 0 &&
                s.input_kernel_h == s.hidden_kernel_h && s.input_kernel_w == s.hidden_kernel_w;
  return plan;
}

std::vector<PlannedConvolution> planned_convolutions(
    const RecurrenceShape& s, Numerics numerics, int64_t threads, int64_t channel_block) {
  std::vector<PlannedConvolution> list;
  const RecurrencePlan plan = plan_recurrence(s);
  const int64_t accumulate = numerics.double_precision ? 8 : 4;
  const auto add = [&](const char* name, bool of_input, int64_t steps, int64_t in, int64_t out,
                       int64_t times) {
    const ConvolutionShape shape{
        steps * s.N,
        s.H,
        s.W,
        in,
        out,
        of_input ? s.input_kernel_h : s.hidden_kernel_h,
        of_input ? s.input_kernel_w : s.hidden_kernel_w};
    const Algorithm algorithm = choose_algorithm(shape, numerics, false);
    const Scheme scheme = scheme_of(algorithm, shape.kernel_h, shape.kernel_w);
    const Work work = plan_work(scheme, shape, accumulate, threads, channel_block);
    list.push_back(
        {name, shape, times, algorithm, work.tiles(scheme), work.tiles_per_block, work.items(scheme)});
  };
  const auto add_gradient = [&](const char* name, bool of_input, int64_t in, int64_t out, int64_t times) {
    GradientWork work{
        plan.backward_steps * s.N,
        s.H,
        s.W,
        of_input ? s.input_kernel_h : s.hidden_kernel_h,
        of_input ? s.input_kernel_w : s.hidden_kernel_w,
        in,
        out,
        1,
        1,
        false,
        {{0, in, 0, out, 1}},
        1};
    const ConvolutionShape shape{work.batch, s.H, s.W, in, out, work.kernel_h, work.kernel_w};
    const Algorithm algorithm = choose_algorithm(shape, numerics, true);
    const Scheme scheme = scheme_of(algorithm, work.kernel_h, work.kernel_w);
    plan_gradient(scheme, accumulate, channel_block, threads, work);
    const int64_t blocks = (out + channel_block - 1) / channel_block;
    list.push_back(
        {name, shape, times, algorithm, work.tiles(scheme), work.tiles_per_chunk,
         scheme.positions() * blocks * work.terms[0].row_splits});
  };
  const int64_t chunks = (s.T + plan.backward_steps - 1) / plan.backward_steps;
  if (plan.joined) {
    add("W_rz*x and U_rz*h", false, 1, s.C + s.K, 2 * s.K, s.T);
    add("W_n*x and U_n*(r.h)", false, 1, s.C + s.K, s.K, s.T);
  } else {
    if (s.C > 0)
      add("W*x", true, plan.forward_steps, s.C, 3 * s.K, (s.T + plan.forward_steps - 1) / plan.forward_steps);
    add(s.cudnn ? "U*h" : "U_rz*h", false, 1, s.K, (s.cudnn ? 3 : 2) * s.K, s.T);
    if (!s.cudnn) add("U_n*(r.h)", false, 1, s.K, s.K, s.T);
  }
  if (!s.cudnn) add("gradient of r.h", false, 1, s.K, s.K, s.T);
  add("gradient of h", false, 1, (s.cudnn ? 3 : 2) * s.K, s.K, s.T);
  if (s.C > 0) add("gradient of x", true, plan.backward_steps, 3 * s.K, s.C, chunks);
  const int64_t hidden = (s.cudnn ? 1 : 2) * s.K, width = (s.cudnn ? 4 : 3) * s.K;
  if (s.C > 0 && s.input_kernel_h == s.hidden_kernel_h && s.input_kernel_w == s.hidden_kernel_w) {
    add_gradient("gradients of W and U", false, s.C + hidden, width, chunks);
  } else {
    if (s.C > 0) add_gradient("gradient of W", true, s.C, width, chunks);
    add_gradient("gradient of U", false, hidden, width, chunks);
  }
  return list;
}

}  // namespace convgru::cpu
