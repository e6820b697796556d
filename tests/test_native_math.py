"""The functions of csrc/gru_math.h against float64, in units in the last place: one by one as a GPU calls
them, with and without FMA, and on the vectors of each instruction set."""

import ctypes
import math
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from convgru_fused import _build_info

CSRC = Path(__file__).parent.parent / "csrc"

SCALAR = """
#include "gru_math.h"
extern "C" {
void sigmoid(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = convgru::sigmoid<float>(x[i]);
}
void tanh_(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = convgru::tanh<float>(x[i]);
}
}
"""

VECTOR = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
%s
#define CONVGRU_ISA isa
#define CONVGRU_VECTOR_BYTES %d
#include "cpu/simd.inl"
using namespace convgru::cpu::isa;
extern "C" {
void sigmoid(int64_t n, const float* x, float* y) {
  for_lanes<float>(
      n, [&](int64_t i, auto lanes) { store(y + i, convgru::sigmoid(load(x + i, lanes)), lanes); });
}
void tanh_(int64_t n, const float* x, float* y) {
  for_lanes<float>(n, [&](int64_t i, auto lanes) { store(y + i, convgru::tanh(load(x + i, lanes)), lanes); });
}
}
"""

# What setup.py gives every kernel, and what the files of the instruction sets define.
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC"]
PRAGMAS = {
    "generic": ("", 16),
    "avx2": ('#pragma GCC target("avx2,fma,f16c")', 32),
    "avx512": ('#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")', 64),
}
TARGETS = {"scalar": (SCALAR, [])}
if platform.machine() == "x86_64":
    TARGETS["scalar-fma"] = (SCALAR, ["-mavx2", "-mfma", "-DCONVGRU_FMA"])
for name, values in PRAGMAS.items():
    TARGETS[name] = (VECTOR % values, [])
    if name == _build_info.cpu_capability():
        break


@pytest.fixture(scope="module", params=TARGETS.values(), ids=TARGETS)
def library(request, tmp_path_factory):
    source, flags = request.param
    folder = tmp_path_factory.mktemp("native-math")
    (folder / "math.cpp").write_text(source)
    command = ["c++", *FLAGS, *flags, f"-I{CSRC}", "math.cpp", "-o", "math.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "math.so"))


def apply(function, x):
    y = torch.empty_like(x)
    pointer = ctypes.c_void_p
    function(ctypes.c_int64(x.numel()), pointer(x.data_ptr()), pointer(y.data_ptr()))
    return y


def ulps(actual, exact):
    """|actual - exact| in units of the spacing of float32 at exact."""
    rounded = exact.float()
    spacing = (torch.nextafter(rounded.abs(), torch.tensor(math.inf)) - rounded.abs()).double()
    return ((actual.double() - exact).abs() / spacing).max().item()


def arguments():
    """Densely where gates live, and over all magnitudes of both signs."""
    dense = torch.linspace(-20, 20, 400_001)
    magnitudes = torch.logspace(-38, 2, 100_001)
    return torch.cat((dense, magnitudes, -magnitudes))


def test_sigmoid_is_within_2_5_ulp(library):
    x = arguments().clamp(-87, 87)  # beyond, the exact value leaves the normal numbers
    assert ulps(apply(library.sigmoid, x), torch.sigmoid(x.double())) <= 2.5


def test_tanh_is_within_3_ulp(library):
    """Measured: 2.70, with FMA 2.54."""
    x = arguments()
    assert ulps(apply(library.tanh_, x), torch.tanh(x.double())) <= 3


def test_special_values(library):
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30, 88.0, -88.0])
    sigmoid, tanh = apply(library.sigmoid, x), apply(library.tanh_, x)
    assert sigmoid[:2].tolist() == [0.5, 0.5]
    assert sigmoid[2].item() == 1 and 0 <= sigmoid[3].item() < 1e-37
    assert sigmoid[[5, 7]].tolist() == [1, 1] and sigmoid[[6, 8]].max() < 1e-37
    assert tanh[:2].tolist() == [0, 0]
    assert tanh[2:4].tolist() == [1, -1]
    assert tanh[5:].tolist() == [1, -1, 1, -1]
    assert sigmoid[4].isnan() and tanh[4].isnan()


def test_functions_are_monotonic_at_the_seams(library):
    """Where one piece of the exponential ends and the next begins there is no step back."""
    seams = (torch.arange(-20, 20) + 0.5) * math.log(2)
    for name in ("sigmoid", "tanh_"):
        for seam in seams.tolist():
            x = torch.linspace(seam - 1e-5, seam + 1e-5, 2001)
            y = apply(getattr(library, name), x).double()
            spacing = torch.finfo(torch.float32).eps * y.abs().max()
            assert (y[1:] - y[:-1]).min() >= -2 * spacing, (name, seam)
