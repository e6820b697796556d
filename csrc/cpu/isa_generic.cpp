// The kernels for any machine.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define CONVGRU_ISA generic
#define CONVGRU_VECTOR_BYTES 16
#define CONVGRU_TILE_ROWS 4
#include "gates_kernels.inl"
#include "pointwise_kernels.inl"
