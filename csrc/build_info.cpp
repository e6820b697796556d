// What is not a tensor operator: how the extension was built and what the machine can run, for `convgru_fused
// info`.
#include <pybind11/pybind11.h>

#include "cpu/capability.h"

namespace py = pybind11;

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "How convgru_fused was built, and which instruction set its CPU kernels use.";
  m.def(
      "compiler",
      [] {
#if defined(__clang__)
        return "clang " __clang_version__;
#else
        return "gcc " __VERSION__;
#endif
      },
      "The compiler that built the extension.");
  m.def(
      "cpu_capability", [] { return convgru::cpu::capability_name(convgru::cpu::capability()); },
      "The instruction set of the CPU kernels: generic, avx2 or avx512; CONVGRU_FUSED_CPU_CAPABILITY lowers "
      "it.");
}
