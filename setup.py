"""Build logic only: the compiled parts of convgru_fused. Metadata is in pyproject.toml.

_C            the operators, through LibTorch's stable ABI: no Python in it, one binary for torch >= 2.11
_build_info   how it was built, through pybind11: no torch in it
"""

import os
from pathlib import Path

import torch
from pybind11 import get_include as pybind11_include
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

CSRC = Path("csrc")
STABLE_ABI_TARGET = "0x020b000000000000"  # torch 2.11
# The kernels say themselves where to fuse multiply and add (csrc/gru_math.h).
COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",  # nobody reads the exception flags, and selections vectorise only without them
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]

# make sanitize: the same code under AddressSanitizer and UndefinedBehaviorSanitizer.
LINK_FLAGS: list[str] = []
if os.environ.get("CONVGRU_FUSED_SANITIZE"):
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    COMPILE_FLAGS += [*LINK_FLAGS, "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-O1", "-g1"]


# The kernels for GPUs, for those who ask: they need nvcc and minutes (docs/cuda.md).
WITH_CUDA = os.environ.get("CONVGRU_FUSED_CUDA") == "1"
NVCC_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr"]


def for_hopper() -> list[str]:
    """Has the machine code for 9.0 made with all that Hopper has (9.0a), and says so to the host's code;
    unless there is other code for 9.0 as well (9.0+PTX), which the GPU might take."""
    visible = {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").split(";")
    architectures = [name for name in listed if name not in ("", "native")] or sorted(visible)
    if {name for name in architectures if name.startswith("9.0")} not in ({"9.0"}, {"9.0a"}):
        return []
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join("9.0a" if name == "9.0" else name for name in architectures)
    return ["-DCONVGRU_FOR_HOPPER"]


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in CSRC.glob(pattern))


def operators() -> Extension:
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI_TARGET), ("Py_LIMITED_API", "0x030A0000")]
    flags = [*COMPILE_FLAGS, "-Wno-unused-parameter", "-Wno-psabi"]
    options = {"extra_link_args": LINK_FLAGS, "py_limited_api": True}
    files = sources("ops.cpp", "problem.cpp", "cpu/*.cpp")
    if not WITH_CUDA:
        return CppExtension(
            "convgru_fused._C", files, define_macros=macros, extra_compile_args=flags, **options
        )
    return CUDAExtension(
        "convgru_fused._C",
        files + sources("cuda/*.cpp", "cuda/*.cu"),
        define_macros=[*macros, ("USE_CUDA", None)],
        extra_compile_args={"cxx": flags, "nvcc": NVCC_FLAGS + for_hopper()},
        **options,
    )


def build_info() -> Extension:
    return Extension(
        "convgru_fused._build_info",
        sources("build_info.cpp", "cpu/capability.cpp", "cpu/plan.cpp"),
        include_dirs=[pybind11_include()],
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=LINK_FLAGS,
        language="c++",
    )


# 0: only the rest, for pip would build in a folder that it deletes (the Makefile builds after it).
BUILD = os.environ.get("CONVGRU_FUSED_BUILD") != "0"

setup(
    ext_modules=[operators(), build_info()] if BUILD else [],
    cmdclass={"build_ext": BuildExtension},
)
