// What it takes to measure on the current device; in the tests, on the CPU.
#pragma once
#include <functional>
#include <string>

#include "kernels.h"

namespace convgru::cuda {

std::string device_name();

// Whether what the stream is given is captured in a graph instead of run.
bool is_capturing(Stream stream);

// From before to after what `run` gives to the stream; waits for it.
double milliseconds(Stream stream, const std::function<void()>& run);

}  // namespace convgru::cuda
