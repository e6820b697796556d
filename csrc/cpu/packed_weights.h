// Weights as the convolution kernels want them, kept from call to call.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "convolution.h"

namespace convgru::cpu {

// Where the elements of one weight tensor, or of a part of it, lie without gaps.
template <class T>
struct WeightMemory {
  const T* data;
  int64_t size;
};

// The weights of a convolution, packed for its kernels. They are packed once and kept: a loop that calls the
// cell step by step would spend as long on its weights as on the convolution. What is kept is compared bit
// for bit with the weights of the call, so it cannot be stale. At most 256 MiB are kept in a process for each
// type, the least recently used go first. memory: of each part of the weights.
template <class T>
std::shared_ptr<const acc_t<T>[]> packed_weights(
    const ConvolutionKernels<T>& kernels, const Weights<T>& weights,
    const WeightMemory<T> (&memory)[kMostSources]);

}  // namespace convgru::cpu
