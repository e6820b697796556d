// Which instruction set the CPU kernels use.
#pragma once

namespace convgru::cpu {

enum class Capability { kGeneric, kAvx2, kAvx512 };

// The best that this machine has, or the lesser one that the environment variable
// CONVGRU_FUSED_CPU_CAPABILITY names ("generic", "avx2", "avx512"); read once. Throws std::runtime_error for
// another value or one the machine lacks.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace convgru::cpu
