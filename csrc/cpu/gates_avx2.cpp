// gates.h for x86-64 with AVX2, FMA and F16C.
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define CONVGRU_ISA avx2
#include "gates_kernels.inl"
#endif
