// The kernels for x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)
// Everything from the standard library comes before the pragma: its inline functions are shared with code
// that has to run on lesser machines.
#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("avx2,fma,f16c")
#define CONVGRU_ISA avx2
#define CONVGRU_FMA
#define CONVGRU_VECTOR_BYTES 32
#define CONVGRU_TILE_ROWS 6
#include "gates_kernels.inl"
#include "pointwise_kernels.inl"
#endif
