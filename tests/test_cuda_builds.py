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
PTXAS = NVCC and Path(NVCC).resolve().with_name("ptxas")
# Of each virtual architecture, the machines that it is assembled for. The kernels ask for the architecture
# only where 16-bit types have the matrix units of 90a, so nvcc 13.0 else makes the same PTX for 80, 86, 89
# and 90a, and for 100 and 120, but for its target; to make it takes twice as long as to assemble it.
ARCHITECTURES = {"80": ("80", "86", "89", "90a"), "100": ("100", "120")}
ARCHITECTURES_OF_16_BITS = {"80": ("80", "86", "89"), "90a": ("90a",), "100": ("100", "120")}
MACHINES = tuple(machine for machines in ARCHITECTURES.values() for machine in machines)
# Registers at most, of any type on any architecture: what `python tests/test_cuda_builds.py` prints (nvcc
# 13.0).
MOST_REGISTERS = {
    "convolve_kernel matrix 64": 123,
    "convolve_kernel matrix 96": 128,
    "convolve_kernel plain 64": 182,
    "convolve_kernel plain 96": 200,
    "convolve_warpgroups_kernel warpgroup 64": 120,
    "convolve_warpgroups_kernel warpgroup 96": 120,
    "convolve_warpgroups_kernel warpgroup 128": 125,
    "convolve_window_kernel matrix 64": 158,
    "convolve_window_kernel matrix 96": 218,
    "elementwise_kernel": 128,
    "pack_kernel": 48,
    "previous_states_kernel": 50,
    "sequence_kernel matrix 8": 135,
    "sequence_kernel matrix 16": 154,
    "sequence_kernel matrix 32": 176,
    "sequence_kernel matrix 48": 226,
    "sequence_kernel matrix 64": 192,
    "sequence_kernel plain 16": 172,
    "sequence_kernel plain 32": 210,
    "sequence_kernel plain 48": 204,
    "transpose_kernel": 61,
    "valid_images_kernel": 38,
}
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr")
SOURCES = sorted(CSRC.glob("cuda/kernels_*.cu"))

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def run(*command: str | Path) -> str:
    """What a compiler says."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def family(name: str) -> str:
    """A kernel without its type and epilogue: what the bounds are given for."""
    match = re.match(r"void convgru::cuda::(\w+)<(.*)>\(", name)
    assert match, name
    kernel, arguments = match.groups()
    config = re.search(r"(Plain|Matrix|Warpgroup)Config<[^,]*, (?:\(int\))?(\d+)", arguments)
    return f"{kernel} {config[1].lower()} {config[2]}" if config else kernel


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
    """By machine and type the resources of all kernels."""

    def one(job: tuple[str, tuple[str, ...], Path]) -> dict[str, dict[str, tuple[int, int]]]:
        architecture, machines, source = job
        ptx = folder / f"{source.stem}.compute_{architecture}.ptx"
        run(NVCC, *FLAGS, "-ptx", f"-arch=compute_{architecture}", source, "-o", ptx)
        reports = {}
        for machine in machines:
            target = folder / f"{source.stem}.sm_{machine}.cubin"
            said = run(PTXAS, "-v", f"-arch=sm_{machine}", ptx, "-o", target)
            assert "serialized" not in said  # products by warpgroups, each waited for
            reports[machine] = resources(said)
        return reports

    jobs = [
        (architecture, machines, source)
        for source in SOURCES
        for architecture, machines in (
            ARCHITECTURES_OF_16_BITS if "16" in source.stem else ARCHITECTURES
        ).items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(one, jobs))
    found: dict[str, dict[str, dict[str, tuple[int, int]]]] = {machine: {} for machine in MACHINES}
    for (_, _, source), of_machines in zip(jobs, reports, strict=True):
        for machine, report in of_machines.items():
            found[machine][source.stem.removeprefix("kernels_")] = report
    return found


def test_one_place_asks_for_the_architecture():
    """But whether there is one. So that the PTX of one serves others."""
    asked = {}
    for source in CSRC.glob("**/*.*"):
        text = source.read_text().replace("defined(__CUDA_ARCH__)", "")
        if "__CUDA_ARCH" in text:
            asked[source.name] = re.findall(r"__CUDA_ARCH\w*", text)
    assert asked == {"ptx.cuh": ["__CUDA_ARCH_FEAT_SM90_ALL"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module")
def kernels(folder):
    return compiled(folder)


@pytest.mark.parametrize("machine", MACHINES)
def test_registers_and_spills(kernels, machine):
    for dtype, families in kernels[machine].items():
        for name, (registers, spilled) in families.items():
            assert spilled == 0, (dtype, name)
            assert registers <= MOST_REGISTERS[name], (dtype, name)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("dtype", "instruction"),
    [
        ("bfloat16", "HMMA.16816.F32.BF16"),
        ("float16", "HMMA.16816.F32"),
        ("float32", "HMMA.1688.F32.TF32"),
        ("float64", "DFMA"),
    ],
)
def test_instructions(kernels, folder, machine, dtype, instruction):
    """Of the machine: products by its matrix units, operands by ldmatrix, copies past the registers."""
    triton = pytest.importorskip("triton")  # whose wheel brings the tool; not every toolkit does
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = folder / f"kernels_{dtype}.sm_{machine}.cubin"
    code = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    for needed in (instruction, "LDGSTS", *(["LDSM"] if instruction.startswith("HMMA") else [])):
        assert needed in code
    by_warpgroups = machine == "90a" and "16" in dtype
    assert ("UBLKCP" in code) == by_warpgroups
    for columns in (64, 96, 128):
        kind = ".BF16" if dtype == "bfloat16" else ""
        assert (f"HGMMA.64x{columns}x16.F32{kind} " in code) == by_warpgroups


def test_what_has_no_kernels(tmp_path):
    run(NVCC, *FLAGS, "-arch=sm_80", "-c", CSRC / "cuda" / "timing.cu", "-o", tmp_path / "object.o")


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
