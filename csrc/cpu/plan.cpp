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
// Of the third-level cache, for the panels of a chunk of a weight gradient.
constexpr int64_t kGradientPanelBytes = 4 << 20;
// Rows of such a panel that are multiplied with all output channels one after the other, so that they stay in the
// second-level cache.
constexpr int64_t kGradientRows = 112;
// Below so many tiles a product reads its weights more often than it is worth, even if the panel does not fit.
constexpr int64_t kFewestTiles = 42;
// With fewer tiles for each thread the output channels are divided among the threads instead.
constexpr int64_t kSplitTiles = 14;
// Multiply-adds below which a second thread does not pay for being woken.
constexpr int64_t kSerialWork = 100000;

// What a convolution costs, in multiply-adds of the products, of which docs/cpu.md has the measurements.
constexpr double kTransformCost = 2.5;  // for every element of a panel and of the products
constexpr double kWeightCost = 12;      // to bring an element of the packed weights from beyond the second-level
                                        // cache

// Extents of a transformed tile: outputs and inputs, along both axes.
struct TileShape {
  int64_t out_h, out_w, in_h, in_w;
};

TileShape tile_shape(Algorithm algorithm, const ConvolutionShape& shape) {
  const int64_t outputs = algorithm == Algorithm::kWinograd4 ? 4 : 2;
  TileShape tile{1, 1, shape.kernel_h, shape.kernel_w};
  if (algorithm == Algorithm::kDirect) return tile;
  if (shape.kernel_h > 1) tile.out_h = outputs, tile.in_h = outputs + shape.kernel_h - 1;
  if (shape.kernel_w > 1) tile.out_w = outputs, tile.in_w = outputs + shape.kernel_w - 1;
  return tile;
}

double cost(Algorithm algorithm, const ConvolutionShape& s, bool weight_gradient) {
  const TileShape tile = tile_shape(algorithm, s);
  const double tiles = double(s.batch) * ((s.height + tile.out_h - 1) / tile.out_h) *
                       ((s.width + tile.out_w - 1) / tile.out_w);
  // Of the direct algorithm these are the taps.
  const double positions = double(tile.in_h) * tile.in_w;
  const double weights = positions * s.in * s.out;
  const double transforms = tiles * positions * (s.in + s.out) * kTransformCost;
  return tiles * weights + transforms + (weight_gradient ? 2 : 1) * weights * kWeightCost;
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

Work plan_work(
    const Scheme& scheme, const ConvolutionShape& shape, int64_t itemsize, int64_t threads,
    int64_t channel_unit) {
  Work work{shape.batch, shape.height, shape.width, shape.kernel_h, shape.kernel_w, 1, 1, channel_unit};
  const int64_t tiles = std::max<int64_t>(1, work.tiles(scheme));
  const int64_t depth = scheme.direct() ? shape.kernel_h * shape.kernel_w * shape.in : shape.in;
  const int64_t most =
      std::max(kFewestTiles, kPanelBytes / (scheme.positions() * (depth + 48) * itemsize) / 14 * 14);
  if (tiles * scheme.positions() * depth * shape.out < kSerialWork) threads = 1;
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
  // The panels of a chunk are shared by all threads; its length must not depend on their number.
  const int64_t most = std::clamp<int64_t>(kGradientPanelBytes / bytes / 64 * 64, 128, 1024);
  const int64_t chunks = (tiles + most - 1) / most;
  work.tiles_per_chunk = (tiles + chunks - 1) / chunks;
  for (GradientTerm* term = work.terms; term != work.terms + work.term_count; ++term) {
    const int64_t products = scheme.positions() * blocks_of(*term, channel_block).count;
    const int64_t rows = taps * term->in, for_threads = (4 * threads + products - 1) / products;
    term->row_splits =
        std::clamp<int64_t>(std::max((rows + kGradientRows - 1) / kGradientRows, for_threads), 1, (rows + 13) / 14);
  }
}

}  // namespace convgru::cpu
