// Storage types of the CPU kernels and the type each computes in.
#pragma once
#include <cstdint>
#include <cstring>

namespace convgru::cpu {

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

namespace {

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

inline double load(double x) {
  return x;
}
inline float load(float x) {
  return x;
}
inline float load(float16 x) {
  return static_cast<float>(x);
}
inline float load(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

template <class T, class A>
inline T store(A x) {
  return static_cast<T>(x);
}
// Round to nearest even; a NaN keeps its quiet bit.
template <>
inline bfloat16 store<bfloat16, float>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7FC0u : rounded)};
}

}  // namespace
}  // namespace convgru::cpu
