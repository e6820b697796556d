// Storage types of the CPU kernels and the type each computes in.
#pragma once
#include <cstdint>

// For functions in headers that the files of all instruction sets share: inlined, they leave no symbol of one
// instruction set that the linker could choose for another.
#define CONVGRU_INLINE inline __attribute__((always_inline))

namespace convgru::cpu {

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

CONVGRU_INLINE float widen(float x) {
  return x;
}
CONVGRU_INLINE double widen(double x) {
  return x;
}
CONVGRU_INLINE float widen(float16 x) {
  return static_cast<float>(x);
}
CONVGRU_INLINE float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}

// Rounds to nearest even.
CONVGRU_INLINE void narrow(float x, float& y) {
  y = x;
}
CONVGRU_INLINE void narrow(double x, double& y) {
  y = x;
}
CONVGRU_INLINE void narrow(float x, float16& y) {
  y = static_cast<float16>(x);
}
CONVGRU_INLINE void narrow(float x, bfloat16& y) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  y.bits = static_cast<uint16_t>(x != x ? 0x7FC0u : rounded);
}

}  // namespace convgru::cpu
