// gates.h for any machine.
#define CONVGRU_ISA generic
#include "gates_kernels.inl"
