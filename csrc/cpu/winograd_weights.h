// Weights in the Winograd domain, kept from call to call.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "winograd.h"

namespace convgru::cpu {

// The weights (O,I,kh,kw) of a convolution or, transposed, of its input gradient, as the kernels' convolve
// wants them. They are transformed once and kept: a loop that calls the cell step by step would spend as long
// on its weights as on the convolution. What is kept is compared bit for bit with the weights of the call, so
// it cannot be stale. At most 256 MiB are kept in a process, the least recently used go first.
std::shared_ptr<const std::vector<float>> winograd_weights(
    const WinogradKernels& kernels, const float* weights, int64_t out, int64_t in,
    const int64_t (&strides)[4], bool transposed);

}  // namespace convgru::cpu
