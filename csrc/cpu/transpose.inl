// Exchanging rows and columns, in the namespace CONVGRU_ISA.
#pragma once
#include "simd.inl"

namespace convgru::cpu::CONVGRU_ISA {
namespace {

// Square blocks of elements that are transposed in registers.
template <size_t kBytes>
struct ElementOf;
template <>
struct ElementOf<2> {
  using type = uint16_t;
};
template <>
struct ElementOf<4> {
  using type = uint32_t;
};
template <>
struct ElementOf<8> {
  using type = uint64_t;
};

template <class T>
struct TransposedBlock {
  using Element = typename ElementOf<sizeof(T)>::type;
  static constexpr int kSize = CONVGRU_VECTOR_BYTES / (sizeof(T) < 4 ? 4 : sizeof(T));
  typedef Element Row __attribute__((vector_size(kSize * sizeof(Element))));

  // Lanes of a and b in turn, from the first halves (0) or the second.
  template <int kHalf, int... kLane>
  static Row interleave(Row a, Row b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(a, b, (kHalf * kSize / 2 + kLane / 2 + kLane % 2 * kSize)...);
  }

  // Interleaving row i with row i + kSize/2, as often as kSize has bits, exchanges rows and columns.
  static void transpose(const T* x, int64_t x_stride, T* y, int64_t y_stride) {
    constexpr auto kLanesOfRow = std::make_integer_sequence<int, kSize>();
    Row a[kSize], b[kSize];
    for (int i = 0; i < kSize; ++i) memcpy(&a[i], x + i * x_stride, sizeof(Row));
#pragma GCC unroll 4
    for (int bit = 1; bit < kSize; bit *= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < kSize / 2; ++i) {
        b[2 * i] = interleave<0>(a[i], a[i + kSize / 2], kLanesOfRow);
        b[2 * i + 1] = interleave<1>(a[i], a[i + kSize / 2], kLanesOfRow);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kSize; ++i) a[i] = b[i];
    }
    for (int i = 0; i < kSize; ++i) memcpy(y + i * y_stride, &a[i], sizeof(Row));
  }
};

template <class T>
void transpose(int64_t rows, int64_t columns, const T* x, int64_t x_stride, T* y, int64_t y_stride) {
  using Block = TransposedBlock<T>;
  constexpr int64_t kSize = Block::kSize;
  const auto block = [&](int64_t i0, int64_t j0) {
    if (i0 + kSize <= rows && j0 + kSize <= columns)
      return Block::transpose(x + i0 * x_stride + j0, x_stride, y + j0 * y_stride + i0, y_stride);
    for (int64_t j = j0; j < columns && j < j0 + kSize; ++j)
      for (int64_t i = i0; i < rows && i < i0 + kSize; ++i) y[j * y_stride + i] = x[i * x_stride + j];
  };
  // The longer axis innermost: the other way round every block would touch new pages.
  if (columns >= rows) {
    for (int64_t i0 = 0; i0 < rows; i0 += kSize)
      for (int64_t j0 = 0; j0 < columns; j0 += kSize) block(i0, j0);
  } else {
    for (int64_t j0 = 0; j0 < columns; j0 += kSize)
      for (int64_t i0 = 0; i0 < rows; i0 += kSize) block(i0, j0);
  }
}

}  // namespace
}  // namespace convgru::cpu::CONVGRU_ISA
