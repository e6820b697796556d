// The kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
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

// GCC 12 warns of the undefined vectors inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define CONVGRU_ISA avx512
#define CONVGRU_FMA
#define CONVGRU_VECTOR_BYTES 64
#define CONVGRU_TILE_ROWS 14
#include "gates_kernels.inl"
#include "pointwise_kernels.inl"
#endif
