// Which instruction set the CPU kernels use.
#pragma once

namespace convgru::cpu {

// Each includes those before it.
enum class Capability { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };
constexpr Capability kCapabilities[] = {
    Capability::kGeneric, Capability::kAvx2, Capability::kAvx512, Capability::kAvx512Bf16};

// The best that this machine has, or the lesser one that the environment variable
// CONVGRU_FUSED_CPU_CAPABILITY names ("generic", "avx2", "avx512", "avx512_bf16"); read once. Throws
// std::runtime_error for another value or one the machine lacks.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace convgru::cpu
