// Chooses among the instruction sets that the kernels were compiled for.
#include "capability.h"
#include "convolution.h"
#include "gates.h"

namespace convgru::cpu {

#define CONVGRU_DECLARE_TYPE(type, name)                     \
  extern const GateKernels<type> name##Gates;                \
  extern const ConvolutionKernelSet<type> name##Convolution; \
  extern const PointwiseKernels<type> name##Pointwise;
#define CONVGRU_DECLARE_KERNELS(isa)        \
  namespace isa {                           \
  CONVGRU_DECLARE_TYPE(float, kFloat)       \
  CONVGRU_DECLARE_TYPE(double, kDouble)     \
  CONVGRU_DECLARE_TYPE(bfloat16, kBFloat16) \
  CONVGRU_DECLARE_TYPE(float16, kFloat16)   \
  }
CONVGRU_DECLARE_KERNELS(generic)
#if defined(__x86_64__)
CONVGRU_DECLARE_KERNELS(avx2)
CONVGRU_DECLARE_KERNELS(avx512)
namespace avx512_bf16 {
extern const PointwiseKernels<bfloat16> kBFloat16Pointwise;
}
#define CONVGRU_CHOOSE(kernels)   \
  switch (capability()) {         \
    case Capability::kAvx512Bf16: \
    case Capability::kAvx512:     \
      return avx512::kernels;     \
    case Capability::kAvx2:       \
      return avx2::kernels;       \
    default:                      \
      return generic::kernels;    \
  }
#else
#define CONVGRU_CHOOSE(kernels) return generic::kernels;
#endif

#define CONVGRU_DEFINE_CHOICE(type, name)                   \
  template <>                                               \
  const GateKernels<type>& gate_kernels() {                 \
    CONVGRU_CHOOSE(name##Gates)                             \
  }                                                         \
  template <>                                               \
  const ConvolutionKernelSet<type>& convolution_kernels() { \
    CONVGRU_CHOOSE(name##Convolution)                       \
  }
#define CONVGRU_DEFINE_POINTWISE(type, name)          \
  template <>                                         \
  const PointwiseKernels<type>& pointwise_kernels() { \
    CONVGRU_CHOOSE(name##Pointwise)                   \
  }
CONVGRU_DEFINE_CHOICE(float, kFloat)
CONVGRU_DEFINE_CHOICE(double, kDouble)
CONVGRU_DEFINE_CHOICE(bfloat16, kBFloat16)
CONVGRU_DEFINE_CHOICE(float16, kFloat16)
CONVGRU_DEFINE_POINTWISE(float, kFloat)
CONVGRU_DEFINE_POINTWISE(double, kDouble)
CONVGRU_DEFINE_POINTWISE(float16, kFloat16)

template <>
const PointwiseKernels<bfloat16>& pointwise_kernels() {
#if defined(__x86_64__)
  if (capability() == Capability::kAvx512Bf16) return avx512_bf16::kBFloat16Pointwise;
#endif
  CONVGRU_CHOOSE(kBFloat16Pointwise)
}

}  // namespace convgru::cpu
