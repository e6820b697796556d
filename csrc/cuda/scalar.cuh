// Elements of images and the type that kernels compute in.
#pragma once
#include "../gru_math.h"
#include "kernels.h"
#include "ptx.cuh"

#define CONVGRU_DEVICE __device__ __forceinline__

namespace convgru::cuda {

template <class T>
constexpr Half kHalfOf = Half::kFloat16;
template <>
constexpr Half kHalfOf<bfloat16> = Half::kBFloat16;

CONVGRU_DEVICE float widen(float x) {
  return x;
}
CONVGRU_DEVICE double widen(double x) {
  return x;
}
CONVGRU_DEVICE float widen(bfloat16 x) {
  return bits_to_float(uint32_t{x.bits} << 16);
}
CONVGRU_DEVICE float widen(float16 x) {
  return half_to_float(x.bits);
}

// Rounds to nearest even.
template <class T>
CONVGRU_DEVICE T narrow(compute_t<T> x) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (kHalfOf<T> == Half::kBFloat16)
      return {float_to_bfloat16(x)};
    else
      return {float_to_half(x)};
  } else {
    return x;
  }
}

}  // namespace convgru::cuda
