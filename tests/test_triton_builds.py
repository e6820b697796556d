"""The Triton kernels as they are compiled for every architecture that is meant: that they compile, fit, spill
nothing, and use the instructions that they should. Needs no GPU."""

import re
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from convgru_fused import ops  # noqa: E402
from convgru_fused.eager import VARIANTS  # noqa: E402
from convgru_fused.testing import sample_inputs  # noqa: E402
from convgru_fused.triton import backward, forward, kernels, launch, layout, tiles  # noqa: E402
from convgru_fused.triton.problem import Problem  # noqa: E402

if ops.triton_interprets():
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

# Architecture: the most bytes of shared memory of a program, and an instruction of its matrix units.
ARCHITECTURES = {
    80: (163 << 10, "mma.sync"),
    86: (99 << 10, "mma.sync"),
    89: (99 << 10, "mma.sync"),
    90: (227 << 10, "wgmma.mma_async"),
    100: (227 << 10, "tcgen05.mma"),
    120: (99 << 10, "mma.sync"),
    "gfx942": (64 << 10, "v_mfma"),
}
DESCRIPTORS = "cp.async.bulk.tensor"

ALL = [
    kernels.reset_update_kernel,
    kernels.candidate_kernel,
    kernels.cudnn_step_kernel,
    kernels.candidate_backward_kernel,
    kernels.reset_update_backward_kernel,
    kernels.cudnn_step_backward_kernel,
    kernels.add_kernel,
]
C, K = 192, 128
CONSTANTS = {
    "C": C,
    "K": K,
    "STRIDE": 3 * K,
    "A_IMAGE": -1,
    "A_PIXEL": 3 * K,
    "KEEP": True,
    "RELU": False,
    "TAPS": 9,
    "KW": 3,
    "PRECISION": "tf32",
}
TYPES = {"lengths": "*i64", "carry": "*fp32"}  # of pointers whose type is not the images'
SIDES = ("rows", "columns")  # of matrices; multiples of 16
MISSING = ("sums", "d_rz", "d_n")


def tile_of(architecture, itemsize, kernel):
    backend, number = ("cuda", architecture) if isinstance(architecture, int) else ("hip", 0)
    return tiles.of_architecture(backend, number, itemsize, kernel.__name__).of_image(28, 28)


def compiled(kernel, architecture, dtype, tile, missing=MISSING, **changed):
    values = {**CONSTANTS, "TILE": tile.constexpr(), **changed}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in missing or parameter.is_constexpr:
            value = None if name in missing else values[name]
            signature[name], constants[index,] = "constexpr", value
        elif name in kernels.STEPS or name in SIDES:
            signature[name] = "i32"
            if name in SIDES:
                attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = TYPES.get(name, f"*{dtype}")
            attributes[index,] = [["tt.divisibility", 16]]
    target = (
        GPUTarget("cuda", architecture, 32)
        if isinstance(architecture, int)
        else GPUTarget("hip", architecture, 64)
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target, options)


def registers_and_spills(binary, architecture, folder):
    """What the assembler says of a kernel for NVIDIA's GPUs: registers, bytes spilled and loaded again."""
    source = folder / "kernel.ptx"
    source.write_text(binary.asm["ptx"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = re.search(r"^\.target (\w+)", binary.asm["ptx"], re.MULTILINE)[1]
    command = [
        tools / ("ptxas-blackwell" if architecture >= 100 else "ptxas"),
        "-v",
        f"--gpu-name={name}",
        source,
        "-o",
        folder / "kernel.cubin",
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
    return int(re.search(r"Used (\d+) registers", report)[1]), sum(spills)


def fitting(binary, architecture, folder, spills=0):
    """The instructions of a kernel, of which it is certain that it fits."""
    assert binary.metadata.shared <= ARCHITECTURES[architecture][0]
    if isinstance(architecture, str):
        text = binary.asm["amdgcn"]
        assert re.findall(r"\.(?:v|s)gpr_spill_count: +(\d+)", text) == ["0", "0"]
        return text
    registers, spilled = registers_and_spills(binary, architecture, folder)
    assert registers <= 255 and spilled <= spills
    return binary.asm["ptx"]


def check(kernel, architecture, dtype, tile, folder, missing=MISSING, spills=0, **changed):
    binary = compiled(kernel, architecture, dtype, tile, missing, **changed)
    text = fitting(binary, architecture, folder, spills)
    if isinstance(architecture, int):
        assert (DESCRIPTORS in text) == tile.descriptors
    assert (ARCHITECTURES[architecture][1] in text) == ("weight" not in missing)


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.__name__)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16(architecture, kernel, tmp_path):
    check(kernel, architecture, "bf16", tile_of(architecture, 2, kernel), tmp_path)


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.__name__)
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a in (90, 100, 120)])
def test_bfloat16_by_pointers(architecture, kernel, tmp_path):
    """Of channels that descriptors cannot load."""
    tile = replace(tile_of(architecture, 2, kernel), descriptors=False)
    check(kernel, architecture, "bf16", tile, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "dtype", "kernel"),
    list(
        product(
            ARCHITECTURES, ["fp16", "fp32"], [kernels.candidate_kernel, kernels.candidate_backward_kernel]
        )
    ),
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_other_types(architecture, dtype, kernel, tmp_path):
    """fp32 with TF32."""
    check(kernel, architecture, dtype, tile_of(architecture, 2 if dtype == "fp16" else 4, kernel), tmp_path)


class Recorder:
    """Takes a kernel's place, and notes in what combinations of its options it is launched: the arguments
    that are None, and the constants that do not stand for a size."""

    def __init__(self, kernel):
        self.__name__, self.arg_names, self.launched = kernel.__name__, kernel.arg_names, set()

    def __getitem__(self, grid):
        def launched(*values, num_warps=None, num_stages=None, **arguments):
            arguments.update(zip(self.arg_names, values, strict=bool(values)))
            missing = tuple(name for name, value in arguments.items() if value is None)
            constants = {name: arguments[name] for name in ("KEEP", "RELU") if name in arguments}
            if arguments["TAPS"] == 0:
                constants["TAPS"] = 0
            if arguments.get("A_IMAGE", -1) >= 0:
                constants["A_IMAGE"] = 3 * K
            self.launched.add((tuple(sorted(missing)), tuple(sorted(constants.items()))))
            return self

        return launched


@pytest.fixture(scope="module")
def launches():
    """By kernel, the combinations that a sequence on an H100 needs, whatever it is given and asked for."""
    recorders = {kernel.__name__: Recorder(kernel) for kernel in ALL}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(tiles, "_architecture", lambda device_index: ("cuda", 90))
        for name, recorder in recorders.items():
            patch.setattr(kernels, name, recorder)
        samples = list(sample_inputs(lambda s: not s.reverse, VARIANTS))
        for by_library, save_gates, sample in product((False, True), (False, True), samples):
            patch.setattr(launch, "prefers_library", lambda weight, fast, value=by_library: value)
            arguments = sample.arguments(torch.bfloat16)
            problem = Problem(*arguments, False)
            output, gates = forward.conv_gru(problem, save_gates)
            wanted = [tensor is not None for tensor in arguments[:7]]
            for mask in (wanted, [False] * 7):
                backward.conv_gru_backward(problem, torch.empty_like(output), output, gates, mask)
    return {name: sorted(recorder.launched) for name, recorder in recorders.items()}


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.__name__)
def test_every_combination_that_is_launched(kernel, launches, tmp_path):
    """Also where nothing is convolved, or PyTorch does it. With lengths a few registers are spilled."""
    combinations = launches[kernel.__name__]
    assert any("weight" in missing for missing, _ in combinations)
    assert any("weight" not in missing for missing, _ in combinations)
    for missing, changed in combinations:
        tile = tile_of(90, 2, kernel)
        if "weight" in missing:
            tile = replace(tile, descriptors=False)
        check(kernel, 90, "bf16", tile, tmp_path, missing, 384, **dict(changed))


@pytest.mark.parametrize("sides", [(3136, 64), (64, 3136), (3, 3136), (3136, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transposing(architecture, dtype, sides, tmp_path):
    """It loads and stores as much at a time as there is, whatever the order."""
    rows, columns = layout.tile(*sides)
    blocks = {"BLOCK_R": rows, "BLOCK_C": columns}
    tile = tiles.Tile(1, 1, rows, columns, 0, False)
    binary = compiled(kernels.transpose_kernel, architecture, dtype, tile, **blocks)
    text = fitting(binary, architecture, tmp_path)
    if isinstance(architecture, int) and min(sides) >= 64:
        assert "ld.global.v4.b32" in text and "st.global.v4.b32" in text


def test_the_checks_can_fail(tmp_path):
    with pytest.raises(AssertionError):
        tile = replace(tile_of(90, 2, kernels.add_kernel), channels=256, warps=4)
        check(kernels.add_kernel, 90, "bf16", tile, tmp_path)
    with pytest.raises(AssertionError):
        check(
            kernels.add_kernel, 86, "bf16", replace(tile_of(80, 2, kernels.add_kernel), stages=12), tmp_path
        )
