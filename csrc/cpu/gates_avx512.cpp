// gates.h for x86-64 with AVX-512 (F, BW, DQ, VL).
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define CONVGRU_ISA avx512
#include "gates_kernels.inl"
#endif
