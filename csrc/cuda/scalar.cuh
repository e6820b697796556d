// Elements of images, alone or some together, and the type that kernels compute in.
#pragma once
#include <type_traits>

#include "../gru_math.h"
#include "kernels.h"
#include "ptx.cuh"

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

// sigmoid and tanh as exactly as T can tell: in 16 bits an absolute error of 1e-7 is nothing, and a fourth of
// the instructions are enough for it.
template <class T>
CONVGRU_DEVICE compute_t<T> sigmoid_of(compute_t<T> x) {
  if constexpr (sizeof(T) == 2) {
    constexpr float kLog2E = 1.44269504f;
    return fast_reciprocal(1 + fast_exp2(-kLog2E * x));
  } else {
    return sigmoid(x);
  }
}
template <class T>
CONVGRU_DEVICE compute_t<T> tanh_of(compute_t<T> x) {
  if constexpr (sizeof(T) == 2) {
    return 2 * sigmoid_of<T>(2 * x) - 1;
  } else {
    return tanh(x);
  }
}

struct Divided {
  int64_t quotient;
  int remainder;
};
// Of numbers that are not negative. Half as wide a division takes a fraction of the time.
CONVGRU_DEVICE Divided divided(int64_t number, int by) {
  if (number >> 32 == 0) {
    const uint32_t small = static_cast<uint32_t>(number), quotient = small / static_cast<uint32_t>(by);
    return {int64_t{quotient}, static_cast<int>(small - quotient * by)};
  }
  return {number / by, static_cast<int>(number % by)};
}

// Elements that a thread reads or writes at once.
template <class T>
constexpr int kVector = kCopyBytes / static_cast<int>(sizeof(T));

// So many bytes that are read or written at once.
template <int kBytes>
struct alignas(kBytes) [[gnu::may_alias]] Words {
  uint32_t at[kBytes / 4];
};

// N neighbouring elements as memory has them; N is 1, or kVector<T> where the address is a multiple of
// kCopyBytes.
template <class T, int N>
class Elements {
 public:
  Elements() = default;
  CONVGRU_DEVICE explicit Elements(const T* from) : raw_(*reinterpret_cast<const Raw*>(from)) {}

  CONVGRU_DEVICE compute_t<T> operator[](int i) const {
    if constexpr (N == 1)
      return widen(raw_);
    else if constexpr (sizeof(T) == 2)
      return widen(T{static_cast<uint16_t>(raw_.at[i / 2] >> 16 * (i % 2))});
    else if constexpr (sizeof(T) == 4)
      return bits_to_float(raw_.at[i]);
    else
      return bits_to_double(uint64_t{raw_.at[2 * i + 1]} << 32 | raw_.at[2 * i]);
  }

 private:
  using Raw = std::conditional_t<N == 1, T, Words<kCopyBytes>>;
  Raw raw_{};
};

// Rounds N neighbouring elements to where they belong.
template <int N, class T>
CONVGRU_DEVICE void put(T* to, const compute_t<T> (&values)[N]) {
  if constexpr (N == 1) {
    *to = narrow<T>(values[0]);
    return;
  } else {
    Words<kCopyBytes> words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2)
        words.at[i] = uint32_t{narrow<T>(values[2 * i]).bits} | uint32_t{narrow<T>(values[2 * i + 1]).bits}
                                                                    << 16;
      else if constexpr (sizeof(T) == 4)
        words.at[i] = float_to_bits(values[i]);
      else
        words.at[i] = static_cast<uint32_t>(double_to_bits(values[i / 2]) >> 32 * (i % 2));
    }
    *reinterpret_cast<Words<kCopyBytes>*>(to) = words;
  }
}

// Whether kVector<T> channels from a multiple of that on can be read and written at once: of K channels each.
template <class T, class... Buffers>
CONVGRU_DEVICE bool in_vectors(int K, const Buffers*... buffers) {
  return K % kVector<T> == 0 && (reinterpret_cast<uintptr_t>(buffers) | ...) % kCopyBytes == 0;
}

}  // namespace convgru::cuda
