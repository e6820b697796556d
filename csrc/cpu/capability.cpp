#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace convgru::cpu {
namespace {

constexpr const char* kVariable = "CONVGRU_FUSED_CPU_CAPABILITY";

Capability detected() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512)
    return __builtin_cpu_supports("avx512bf16") ? Capability::kAvx512Bf16 : Capability::kAvx512;
  if (avx2) return Capability::kAvx2;
#endif
  return Capability::kGeneric;
}

Capability chosen() {
  const Capability best = detected();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr) return best;
  for (const Capability capability : kCapabilities) {
    if (std::string(wanted) != capability_name(capability)) continue;
    if (capability > best)
      throw std::runtime_error(
          std::string(kVariable) + ": this machine has no " + wanted + ", its best is " +
          capability_name(best));
    return capability;
  }
  throw std::runtime_error(
      std::string(kVariable) + ": expected generic, avx2, avx512 or avx512_bf16, got " + wanted);
}

}  // namespace

Capability capability() {
  static const Capability value = chosen();
  return value;
}

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::kAvx2:
      return "avx2";
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx512Bf16:
      return "avx512_bf16";
    default:
      return "generic";
  }
}

}  // namespace convgru::cpu
