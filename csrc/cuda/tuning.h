// Which way through a sequence is the fastest, measured once and remembered on disk.
#pragma once
#include <functional>
#include <optional>
#include <string>

#include "recurrence.h"

namespace convgru::cuda {

// With CONVGRU_FUSED_AUTOTUNE=1 the fastest way of those that `run` was measured with: once for a device, a
// release of PyTorch, `what` is computed, and a problem, of however many steps, one apart from several. It is
// a line of the file cuda_ways.txt in CONVGRU_FUSED_CACHE, by default ~/.cache/convgru_fused. Nothing without
// that variable, and while a graph is captured if nothing is remembered.
std::optional<Way> measured_way(
    const Call& call, const std::string& what, const std::function<void(const Call&)>& run);

}  // namespace convgru::cuda
