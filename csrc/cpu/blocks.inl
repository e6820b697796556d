// Blocks of output channels, and their way to the epilogue; in the namespace CONVGRU_ISA.
#pragma once
#include "convolution.h"
#include "simd.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// Output channels that are multiplied together: two vectors.
template <class A>
constexpr int64_t kBlock = 2 * kLanes<A>;

// Additions of a product that follow each other in one chain: rounding errors grow with the length of a
// chain, so the sums of shorter ones are added.
constexpr int64_t kChain = 64;

// The products of pixels that follow each other are their sums.
template <class T>
void direct_sums(
    int64_t first_pixel, int64_t count, const acc_t<T>* products, int64_t channel, int64_t channels,
    const Epilogue<T>& epilogue) {
  for (int64_t first = 0; first < count; first += kEpiloguePixels) {
    int64_t pixels[kEpiloguePixels];
    for (int64_t i = 0; i < kEpiloguePixels; ++i) pixels[i] = first_pixel + first + i;
    const int64_t some = count - first < kEpiloguePixels ? count - first : kEpiloguePixels;
    epilogue.apply(
        epilogue.arguments, pixels, some, channel, channels, products + first * kBlock<acc_t<T>>,
        kBlock<acc_t<T>>);
  }
}

}  // namespace
}  // namespace convgru::cpu::CONVGRU_ISA
