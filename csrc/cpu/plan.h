// Which algorithm runs a convolution, and how its work is cut: the one place that decides. No torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

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
// CONVGRU_FUSED_CPU_ALGORITHM ("direct", "winograd2", "winograd4") forces one wherever it exists, except
// under only_direct. Throws std::runtime_error for another value.
Algorithm choose_algorithm(const ConvolutionShape& shape, Numerics numerics, bool weight_gradient);

const char* algorithm_name(Algorithm algorithm);

// The shape of an algorithm's tiles for a kernel for which it exists.
Scheme scheme_of(Algorithm algorithm, int64_t kernel_h, int64_t kernel_w);

// Whether a convolution is by a 1x1 kernel of so few pixels that its weights are not worth packing.
bool reads_weights_in_place(const ConvolutionShape& shape);

// Whether a convolution of so many multiply-adds is not worth a second thread.
bool is_serial(int64_t multiply_adds);

// How the work of a convolution is cut for so many threads; itemsize of the compute type. channel_unit output
// channels are never torn apart.
Work plan_work(
    const Scheme& scheme, const ConvolutionShape& shape, int64_t itemsize, int64_t threads,
    int64_t channel_unit);

// Fills in how the work of weight gradients is cut; the rest of work is given.
void plan_gradient(
    const Scheme& scheme, int64_t itemsize, int64_t channel_block, int64_t threads, GradientWork& work);

// What is asked of the operators. T time steps, N batch, C input channels, K hidden channels, H x W pixels.
struct RecurrenceShape {
  int64_t T, N, C, K, H, W;  // C 0: no input
  int64_t input_kernel_h, input_kernel_w, hidden_kernel_h, hidden_kernel_w;
  bool cudnn, has_hx;
  int64_t itemsize;
};

// How the recurrence goes through time.
struct RecurrencePlan {
  int64_t forward_steps, backward_steps;  // worked on together: W*x, and what follows the backward recurrence
  bool joined;                            // step by step, W*x and U*h added before they leave the registers
};
RecurrencePlan plan_recurrence(const RecurrenceShape& shape);

// One convolution of a call, for people to read.
struct PlannedConvolution {
  std::string name;
  ConvolutionShape shape;
  int64_t times;  // that it runs
  Algorithm algorithm;
  int64_t tiles, tiles_per_block, parts;  // parts: into which the work is cut for the threads
};
std::vector<PlannedConvolution> planned_convolutions(
    const RecurrenceShape& shape, Numerics numerics, int64_t threads, int64_t channel_block);

}  // namespace convgru::cpu
