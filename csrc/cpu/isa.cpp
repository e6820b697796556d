// Chooses among the instruction sets that the kernels were compiled for.
#include "capability.h"
#include "gates.h"
#include "winograd.h"

namespace convgru::cpu {

#define CONVGRU_DECLARE_KERNELS(isa)            \
  namespace isa {                               \
  extern const GateKernels<float> kFloat;       \
  extern const GateKernels<double> kDouble;     \
  extern const GateKernels<bfloat16> kBFloat16; \
  extern const GateKernels<float16> kFloat16;   \
  extern const WinogradKernelSet kWinograd;     \
  }
CONVGRU_DECLARE_KERNELS(generic)
#if defined(__x86_64__)
CONVGRU_DECLARE_KERNELS(avx2)
CONVGRU_DECLARE_KERNELS(avx512)
#define CONVGRU_CHOOSE(kernels) \
  switch (capability()) {       \
    case Capability::kAvx512:   \
      return avx512::kernels;   \
    case Capability::kAvx2:     \
      return avx2::kernels;     \
    default:                    \
      return generic::kernels;  \
  }
#else
#define CONVGRU_CHOOSE(kernels) return generic::kernels;
#endif

template <>
const GateKernels<float>& gate_kernels() {
  CONVGRU_CHOOSE(kFloat)
}
template <>
const GateKernels<double>& gate_kernels() {
  CONVGRU_CHOOSE(kDouble)
}
template <>
const GateKernels<bfloat16>& gate_kernels() {
  CONVGRU_CHOOSE(kBFloat16)
}
template <>
const GateKernels<float16>& gate_kernels() {
  CONVGRU_CHOOSE(kFloat16)
}

namespace {
const WinogradKernelSet& winograd_kernel_set() {
  CONVGRU_CHOOSE(kWinograd)
}
}  // namespace

const WinogradKernels* winograd_kernels(int64_t kernel_h, int64_t kernel_w) {
  for (const WinogradKernels& kernels : winograd_kernel_set().schemes)
    if (kernels.scheme.kernel_h == kernel_h && kernels.scheme.kernel_w == kernel_w) return &kernels;
  return nullptr;
}

}  // namespace convgru::cpu
