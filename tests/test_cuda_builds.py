"""The CUDA backend as nvcc compiles it, for every architecture that is meant: that it compiles, and what the
machine code needs. Needs the CUDA toolkit, no GPU."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
# Registers at most, of any type on any architecture: what `python tests/test_cuda_builds.py` prints (nvcc
# 13.0).
MOST_REGISTERS = {
    "convolve_kernel matrix 64": 126,
    "convolve_kernel matrix 96": 127,
    "convolve_kernel matrix 128x64": 128,
    "convolve_kernel matrix 128x96": 186,
    "convolve_kernel plain 64": 188,
    "convolve_kernel plain 96": 192,
    "elementwise_kernel": 78,
    "pack_kernel": 38,
    "previous_states_kernel": 50,
    "sequence_kernel matrix 32": 180,
    "sequence_kernel matrix 48": 193,
    "sequence_kernel plain 32": 213,
    "sequence_kernel plain 48": 192,
    "transpose_kernel": 61,
    "valid_images_kernel": 38,
}
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr")

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def nvcc(source: Path, target: Path, architecture: str, *options: str) -> str:
    """Compiles and returns what the compiler says."""
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [NVCC, *FLAGS, *options, code, "-Xptxas=-v", source, "-o", target]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


def family(name: str) -> str:
    """A kernel without its type and epilogue: what the bounds are given for."""
    match = re.match(r"void convgru::cuda::(\w+)<(.*)>\(", name)
    assert match, name
    kernel, arguments = match.groups()
    config = re.search(r"(Plain|Matrix)Config<[^,]*, (?:\(int\))?(\d+)", arguments)
    large = "128x" if re.search(r"MatrixShape\{(?:\(int\))?128\b", arguments) else ""
    return f"{kernel} {config[1].lower()} {large}{config[2]}" if config else kernel


def resources(report: str) -> dict[str, tuple[int, int]]:
    """Of every family of kernels the most registers and the most bytes of stack and spills."""
    names = re.findall(r"Compiling entry function '(\S+)'", report)
    words = subprocess.run(
        ["c++filt", *names], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.findall(r"Used (\d+) registers", report)
    assert len(words) == len(stacks) == len(registers) > 0
    found: dict[str, tuple[int, int]] = {}
    for name, stack, count in zip(words, stacks, registers, strict=True):
        before = found.get(family(name), (0, 0))
        found[family(name)] = (max(before[0], int(count)), max(before[1], sum(map(int, stack))))
    return found


def compiled(folder: Path) -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
    """By architecture and type the resources of all kernels."""
    sources = sorted(CSRC.glob("cuda/kernels_*.cu"))

    def one(job: tuple[str, Path]) -> dict[str, tuple[int, int]]:
        architecture, source = job
        target = folder / f"{source.stem}.sm_{architecture}.cubin"
        return resources(nvcc(source, target, architecture, "-cubin"))

    jobs = [(architecture, source) for architecture in ARCHITECTURES for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(one, jobs))
    found: dict[str, dict[str, dict[str, tuple[int, int]]]] = {name: {} for name in ARCHITECTURES}
    for (architecture, source), report in zip(jobs, reports, strict=True):
        found[architecture][source.stem.removeprefix("kernels_")] = report
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module")
def kernels(folder):
    return compiled(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_and_spills(kernels, architecture):
    for dtype, families in kernels[architecture].items():
        for name, (registers, spilled) in families.items():
            assert spilled == 0, (dtype, name)
            assert registers <= MOST_REGISTERS[name], (dtype, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "instruction"),
    [
        ("bfloat16", "HMMA.16816.F32.BF16"),
        ("float16", "HMMA.16816.F32"),
        ("float32", "HMMA.1688.F32.TF32"),
        ("float64", "DFMA"),
    ],
)
def test_instructions(kernels, folder, architecture, dtype, instruction):
    """Of the machine: products by the matrix units, operands by ldmatrix, copies past the registers."""
    triton = pytest.importorskip("triton")  # whose wheel brings the tool; not every toolkit does
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = folder / f"kernels_{dtype}.sm_{architecture}.cubin"
    code = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    for needed in (instruction, "LDGSTS", *(["LDSM"] if instruction.startswith("HMMA") else [])):
        assert needed in code


def test_what_has_no_kernels(tmp_path):
    nvcc(CSRC / "cuda" / "timing.cu", tmp_path / "object.o", ARCHITECTURES[0], "-c")


@pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cpp")), ids=lambda path: path.name)
def test_the_rest_compiles_against_this_torch(source, tmp_path):
    includes = [*cpp_extension.include_paths(), Path(NVCC).resolve().parents[1] / "include"]
    command = [
        os.environ.get("CXX", "g++"),
        "-std=c++20",
        "-O1",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    command += [
        "-Wno-unused-parameter",
        "-Wno-psabi",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    command += [f"-isystem{path}" for path in includes]
    subprocess.run([*command, "-c", source, "-o", tmp_path / "object.o"], check=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        measured = compiled(Path(temporary))
    most: dict[str, int] = {}
    for types in measured.values():
        for families in types.values():
            for name, (count, _) in families.items():
                most[name] = max(most.get(name, 0), count)
    print(*sorted(most.items()), sep="\n")
