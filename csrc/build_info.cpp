// What is not a tensor operator: how the extension was built, what the machine can run and how far its cores
// are apart, for `convgru_fused info` and the benchmarks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "cpu/plan.h"
#include "round_trip.h"

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
      "The instruction set of the CPU kernels: generic, avx2, avx512 or avx512_bf16; "
      "CONVGRU_FUSED_CPU_CAPABILITY lowers it.");
  m.def(
      "cpu_capabilities",
      [] {
        std::vector<std::string> names;
        for (const auto each : convgru::cpu::kCapabilities)
          if (each <= convgru::cpu::capability()) names.emplace_back(convgru::cpu::capability_name(each));
        return names;
      },
      "cpu_capability() and the lesser ones before it, which it includes.");
  m.def(
      "thread_round_trip", &convgru::thread_round_trip, py::call_guard<py::gil_scoped_release>(),
      "Nanoseconds in which a cache line goes from one thread to another and back: tens between cores that "
      "share a cache, hundreds between parts of a processor.");
  m.def(
      "cpu_plan",
      [](int64_t T, int64_t N, int64_t C, int64_t K, int64_t H, int64_t W, int64_t kernel_h, int64_t kernel_w,
         bool cudnn, int64_t itemsize, bool fast, int64_t threads) {
        using namespace convgru::cpu;
        const bool wide = itemsize == 8;
        const int64_t vector = capability() >= Capability::kAvx512 ? 64
                               : capability() == Capability::kAvx2 ? 32
                                                                   : 16;
        const RecurrenceShape shape{T,        N,        C,        K,     H,    W,       kernel_h,
                                    kernel_w, kernel_h, kernel_w, cudnn, true, itemsize};
        std::vector<
            std::tuple<std::string, int64_t, std::string, int64_t, int64_t, int64_t, int64_t, int64_t>>
            rows;
        for (const PlannedConvolution& c : planned_convolutions(
                 shape, {fast || itemsize < 4, wide, false}, threads, 2 * vector / (wide ? 8 : 4)))
          rows.emplace_back(
              c.name, c.times, algorithm_name(c.algorithm), c.shape.in, c.shape.out, c.tiles,
              c.tiles_per_block, c.parts);
        return rows;
      },
      py::arg("T"), py::arg("N"), py::arg("C"), py::arg("K"), py::arg("H"), py::arg("W"), py::arg("kernel_h"),
      py::arg("kernel_w"), py::arg("cudnn"), py::arg("itemsize"), py::arg("fast"), py::arg("threads"),
      "The convolutions of a training step of one layer: name, times that it runs, algorithm, input "
      "channels, output channels, tiles, tiles that are worked on together, parts for the threads.");
}
