// Which algorithm runs a convolution, and how its work is cut: the one place that decides. No torch.
#pragma once
#include <cstdint>
#include <string>

#include "convolution.h"

namespace convgru::cpu {

struct ConvolutionShape {
  int64_t batch, height, width;
  int64_t in, out;
  int64_t kernel_h, kernel_w;
};

// What a convolution's rounding may cost, and the type of its images.
struct Numerics {
  bool fast;  // convgru_fused.precision: every algorithm, else those that round like the direct sum
  bool double_precision;
  bool only_direct;
};

// The algorithm for a convolution or, with weight_gradient, for its weight gradient. The environment variable
// CONVGRU_FUSED_CPU_ALGORITHM ("direct", "winograd2", "winograd4") forces one wherever it exists, except under
// only_direct. Throws std::runtime_error for another value.
Algorithm choose_algorithm(const ConvolutionShape& shape, Numerics numerics, bool weight_gradient);

const char* algorithm_name(Algorithm algorithm);

// How the work of a convolution is cut for so many threads; itemsize of the compute type. channel_unit output
// channels are never torn apart.
Work plan_work(
    const Scheme& scheme, const ConvolutionShape& shape, int64_t itemsize, int64_t threads,
    int64_t channel_unit);

// Fills in how the work of weight gradients is cut; the rest of work is given.
void plan_gradient(
    const Scheme& scheme, int64_t itemsize, int64_t channel_block, int64_t threads, GradientWork& work);

}  // namespace convgru::cpu
