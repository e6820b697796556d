// The kernels for any machine.
#define CONVGRU_ISA generic
#define CONVGRU_VECTOR_BYTES 16
#define CONVGRU_TILE_ROWS 4
#include "gates_kernels.inl"
#include "winograd_kernels.inl"
