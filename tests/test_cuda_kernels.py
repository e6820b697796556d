"""The CUDA backend, kernels and all, on the CPU: csrc/cuda compiled by the host's compiler for the harness of
tests/cuda_on_host, with its operators under a name of their own, against plain PyTorch in float64. Needs a
C++ compiler, no GPU and no CUDA toolkit."""

import ctypes
import dataclasses
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_cuda_on_host import COMPILER, SANITIZERS
from test_relu import check_operators
from torch.utils import cpp_extension

from convgru_fused import ops
from convgru_fused.backends import BACKENDS, Backend
from convgru_fused.eager import Gradients
from convgru_fused.testing import (
    SMOOTH_VARIANTS,
    TOLERANCES,
    Sample,
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    reference,
    run,
    sample_inputs,
)

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "tests" / "cuda_on_host"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def library(request, tmp_path_factory):
    """The compiled backend, loaded; under `make sanitize` sanitized itself."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER}")
    folder = tmp_path_factory.mktemp("cuda_on_host")
    csrc = ROOT / "csrc"
    sources = [
        HARNESS / "extension.cpp",
        csrc / "problem.cpp",
        *csrc.glob("cuda/*.cpp"),
        *csrc.glob("cuda/*.cu"),
    ]
    flags = [
        "-std=c++20",
        "-O2",
        "-march=native",
        "-ffp-contract=off",
        "-fPIC",
        "-Wno-psabi",
        "-DCONVGRU_CUDA_ON_HOST",
        "-include",
        HARNESS / "cuda_on_host.h",
    ]
    sanitize = SANITIZERS if request.config.getoption("--native-from") else ()
    flags += sanitize
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]

    def compiled(source: Path) -> Path:
        target = folder / (source.name + ".o")
        subprocess.run([COMPILER, *flags, "-c", "-x", "c++", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    shared = folder / "cuda_on_host.so"
    torch_libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    subprocess.run(
        [COMPILER, "-shared", *sanitize, *objects, "-o", shared, *torch_libraries, "-ltorch_cpu", "-ltorch"],
        check=True,
    )
    torch.ops.load_library(shared)
    return ctypes.CDLL(str(shared))


class _HostRun(torch.autograd.Function):
    """conv_gru with the gradient that conv_gru_backward gives, both as compiled for the host."""

    @staticmethod
    def forward(ctx, tf32, save_gates, variant, reverse, *tensors):
        output, gates = torch.ops.convgru_fused_cuda_on_host.conv_gru(
            *tensors, variant, reverse, tf32, save_gates
        )
        ctx.save_for_backward(*tensors, output, gates)
        ctx.options = (variant, reverse, tf32)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        mask = list(ctx.needs_input_grad[4 : 4 + ops.NUM_DIFFERENTIABLE])
        gradients = torch.ops.convgru_fused_cuda_on_host.conv_gru_backward(
            grad_output, *ctx.saved_tensors, *ctx.options, mask
        )
        needed = (g if keep else None for g, keep in zip(gradients, mask, strict=True))
        return (None, None, None, None, *needed, None)  # lengths


@pytest.fixture
def backend(library, monkeypatch):
    """The name of the backend on the host, of which run() knows; the arguments of backend() set how it runs:
    resident_blocks is the size of the GPU, 0 if it cannot run a sequence by one kernel; by_library leaves the
    convolutions of the steps to PyTorch; with warpgroups they are theirs where they suit."""
    options = {"tf32": False}

    def conv_gru(*args, save_gates):
        *tensors, variant, reverse = args
        return _HostRun.apply(options["tf32"], save_gates, variant, reverse, *tensors)

    name = "cuda on the host"
    monkeypatch.setitem(BACKENDS, name, Backend(name, "", lambda: "", lambda problem: [], conv_gru))

    def configure(seed=0, tf32=False, resident_blocks=24, by_library=False, warpgroups=False):
        library.cuda_on_host_warpgroups(warpgroups)
        library.cuda_on_host_least_operations_of_library(ctypes.c_double(0 if by_library else 1e300))
        library.cuda_on_host_seed(seed)
        library.cuda_on_host_resident_blocks(resident_blocks)
        options["tf32"] = tf32
        return name

    return configure


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients(backend, dtype, sample):
    output, gradients = run(backend(), sample, dtype)
    expected_output, expected_gradients = reference(sample, dtype)
    assert output.dtype == dtype
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


def samples(*cases):
    """Those of some cases, in both variants, forward in time."""
    return [s for s in sample_inputs() if not s.reverse and s.name.removesuffix(f"-{s.variant}") in cases]


WAYS = {
    "kernels": {"resident_blocks": 0},
    "one-kernel": {"resident_blocks": 24},
    "library": {"resident_blocks": 0, "by_library": True},
    "warpgroups": {"resident_blocks": 0, "warpgroups": True},
}


@pytest.mark.parametrize(
    ("how", "dtype", "sample"),
    [
        pytest.param(how, dtype, sample, id=f"{name}-{dtype}-{sample}")
        for name, how in WAYS.items()
        for dtype in (DTYPES[:3] if name != "warpgroups" else [torch.bfloat16])
        for sample in samples("kernel-3x5", "channels-of-16", "no-input", "one-step-hx")
    ],
)
def test_gradients_from_recomputed_gates(backend, how, dtype, sample):
    """Every kernel but those of TF32, and of float16 which are bfloat16's but for the rounding, is in here:
    `make sanitize` runs it."""
    backend_on_host = backend(**how)
    output, gradients = run(backend_on_host, sample, dtype, save_gates=False)
    expected_output, expected_gradients = reference(sample, dtype)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolutions_by_library(backend, dtype, sample):
    output, gradients = run(backend(resident_blocks=0, by_library=True), sample, dtype)
    expected_output, expected_gradients = reference(sample, dtype)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs(variants=["gru-rcn-relu"])), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu(library, dtype, sample):
    operators = torch.ops.convgru_fused_cuda_on_host
    check_operators(operators.conv_gru, operators.conv_gru_backward, sample, dtype, fast=False)


@pytest.mark.parametrize("sample", samples("everything", "channels-of-16", "kernel-7x7"), ids=str)
def test_tf32(backend, sample):
    """Factors of 10 bits, as float16 has them; held to the same bounds."""
    output, gradients = run(backend(tf32=True), sample, torch.float32)
    expected_output, expected_gradients = reference(sample, torch.float32)
    exact, _ = run(backend(tf32=False), sample, torch.float32)
    assert not torch.equal(output, exact)
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[torch.float16, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[torch.float16, "gradients"])


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((20, 40, 13, 17), (3, 3)),
        ((3, 72, 3, 90), (3, 3)),
        ((8, 5, 1, 200), (3, 3)),
        ((8, 5, 2, 130), (1, 3)),
        ((17, 33, 12, 70), (5, 1)),
        ((4, 8, 5, 75), (5, 7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("resident_blocks", [0, 24], ids=["kernels", "one-kernel"])
@pytest.mark.parametrize("tf32", [False, True], ids=["bfloat16", "tf32"])
def test_windows(backend, variant, shape, kernel, resident_blocks, tf32):
    """Of images narrower and wider than a tile, in several tiles of rows and columns."""
    C, K, H, W = shape
    dtype = torch.float32 if tf32 else torch.bfloat16
    sample = Sample("window", T=2, N=1, C=C, K=K, H=H, W=W, kernel=kernel, variant=variant, hx=True)
    output, gradients = run(backend(resident_blocks=resident_blocks, tf32=tf32), sample, dtype)
    expected_output, expected_gradients = reference(sample, dtype)
    as_precise = torch.float16 if tf32 else dtype
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[as_precise, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[as_precise, "gradients"])


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((20, 40, 13, 17), (3, 3)),
        ((3, 72, 3, 90), (3, 3)),
        ((8, 5, 1, 300), (3, 3)),
        ((8, 16, 2, 130), (1, 3)),
        ((17, 33, 12, 70), (5, 1)),
        ((4, 64, 5, 75), (5, 7)),
    ],
    ids=str,
)
def test_warpgroups(backend, variant, dtype, shape, kernel, monkeypatch, capfd):
    """Tiles of all their widths, some in several tiles of rows and columns, and chunks of channels."""
    C, K, H, W = shape
    monkeypatch.setenv("CONVGRU_FUSED_VERBOSE", "1")
    sample = Sample("window", T=2, N=1, C=C, K=K, H=H, W=W, kernel=kernel, variant=variant, hx=True)
    expected_output, expected_gradients = reference(sample, dtype)
    results = [run(backend(seed, resident_blocks=0, warpgroups=True), sample, dtype) for seed in range(2)]
    assert capfd.readouterr().err.count("convolutions by our own of warpgroups") == 4
    for output, gradients in results:
        assert torch.equal(output, results[0][0])
        assert_same_bits(gradients, results[0][1])
        assert_close_to_reference(output, expected_output)
        assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", [s for s in sample_inputs() if not s.reverse], ids=str)
def test_warpgroups_where_they_suit(backend, sample):
    """Else what there is without them."""
    output, gradients = run(backend(resident_blocks=0, warpgroups=True), sample, torch.bfloat16)
    expected_output, expected_gradients = reference(sample, torch.bfloat16)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


def assert_same_bits(gradients, expected_gradients):
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (expected is None)
        assert gradient is None or torch.equal(gradient, expected)


@pytest.mark.parametrize("sample", samples("everything", "channels-of-16-1x5"), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_whoever_goes_first(backend, dtype, sample):
    """A missing barrier would show."""
    expected_output, expected_gradients = run(backend(seed=0), sample, dtype)
    for seed in range(1, 4):
        output, gradients = run(backend(seed=seed), sample, dtype)
        assert torch.equal(output, expected_output)
        assert_same_bits(gradients, expected_gradients)


@pytest.mark.parametrize(
    ("dtype", "sample"),
    [
        *((torch.float32, sample) for sample in sample_inputs() if sample.T > 1),
        *((torch.bfloat16, sample) for sample in samples("everything", "channels-of-16-1x5", "lengths")),
    ],
    ids=str,
)
def test_one_kernel_for_the_sequence_or_many(library, backend, dtype, sample):
    """From one kernel or many the same bits, but on the matrix units, where one kernel splits the depth of
    the products; there the same whoever goes first."""
    row_tiles = -(-sample.N * sample.H * sample.W // 64)
    widest = 16 if dtype == torch.float32 else 32  # tiles of K columns
    tiles = [-(-sample.K // widest)] * 2  # side by side, forward and backward
    if sample.variant == "cudnn":
        tiles[0] = -(-sample.K // 16)

    def run_with(resident_blocks, seed=0):
        before = library.cuda_on_host_cooperative_launches()
        output, gradients = run(backend(seed, resident_blocks=resident_blocks), sample, dtype)
        return output, gradients, library.cuda_on_host_cooperative_launches() - before

    by_kernels, gradients_by_kernels, launches = run_with(0)
    assert launches == 0
    for blocks in (1, 2, 3 * max(tiles), row_tiles * max(tiles)):
        output, gradients, launches = run_with(blocks)
        if dtype == torch.float32:
            expected_output, expected_gradients = by_kernels, gradients_by_kernels
        else:
            assert_close_to_reference(output, reference(sample, dtype)[0])
            assert_gradients_close(gradients, reference(sample, dtype)[1])
            expected_output, expected_gradients, _ = run_with(blocks, seed=1)
        assert torch.equal(output, expected_output)
        assert_same_bits(gradients, expected_gradients)
        if sample.kernel != (7, 7):  # whose weights are too many for shared memory
            assert launches == sum(row_tiles <= 4 * (blocks // across) for across in tiles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"C": 8, "K": 3},
        {"C": 40, "K": 24},
        {"C": 5, "K": 33, "kernel": (1, 5)},
        {"C": 8, "K": 24, "input": False, "gate_bias": "full"},
    ],
    ids=str,
)
def test_one_kernel_for_a_single_step_forward(library, backend, dtype, options):
    """Of [x,h] together, x alone where columns do not see h; tiles that end in the middle of a gate."""
    sample = Sample("one", T=1, N=2, H=5, W=9, hx=True, **options)
    args = sample.arguments(dtype)
    outputs = []
    for resident_blocks in (0, 24):
        before = library.cuda_on_host_cooperative_launches()
        outputs.append(BACKENDS[backend(resident_blocks=resident_blocks)].conv_gru(*args, save_gates=False))
        assert library.cuda_on_host_cooperative_launches() == before + (resident_blocks > 0)
        assert_close_to_reference(outputs[-1], reference(sample, dtype)[0])
    if dtype == torch.float32:
        assert torch.equal(*outputs)


@pytest.mark.parametrize(("width", "launches"), [(20, 2), (26, 0)])
def test_one_kernel_instead_of_the_library(library, backend, width, launches):
    """Unless its blocks have more than two tiles."""
    sample = Sample("tiles", T=2, N=1, C=8, K=16, H=5, W=width)
    before = library.cuda_on_host_cooperative_launches()
    output, gradients = run(backend(resident_blocks=1, by_library=True), sample, torch.bfloat16)
    assert library.cuda_on_host_cooperative_launches() == before + launches
    assert_close_to_reference(output, reference(sample, torch.bfloat16)[0])
    assert_gradients_close(gradients, reference(sample, torch.bfloat16)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("resident_blocks", "width", "launches"), [(24, 9, 2), (3, 9, 2), (2, 40, 1)])
def test_one_kernel_for_a_single_step_backwards(library, backend, dtype, resident_blocks, width, launches):
    """Unless its blocks have many tiles."""
    sample = Sample("one", T=1, N=1, C=8, K=16, H=5, W=width, hx=True)
    before = library.cuda_on_host_cooperative_launches()
    output, gradients = run(backend(resident_blocks=resident_blocks), sample, dtype)
    assert library.cuda_on_host_cooperative_launches() == before + launches
    assert_close_to_reference(output, reference(sample, dtype)[0])
    assert_gradients_close(gradients, reference(sample, dtype)[1])


@pytest.mark.parametrize("options", [{"hx": False}, {"hx": True, "variant": "cudnn"}], ids=str)
def test_a_single_step_with_too_few_convolutions_for_one_kernel(library, backend, options):
    sample = Sample("one", T=1, N=2, C=8, K=3, H=5, W=9, **options)
    before = library.cuda_on_host_cooperative_launches()
    run(backend(), sample, torch.float32)
    assert library.cuda_on_host_cooperative_launches() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one kernel, 4 blocks of 256 threads, tiles of 16 and 8 columns, 1 stages, "),
        (
            {"resident_blocks": 2},
            "one kernel, 2 blocks of 256 threads, tiles of 32 and 16 columns, 1 stages, ",
        ),
        (
            {"resident_blocks": 1},
            "one kernel, 1 blocks of 256 threads, tiles of 64 and 32 columns, 1 stages, ",
        ),
        ({"resident_blocks": 0}, "kernels for every step, convolutions by our own"),
        (
            {"resident_blocks": 0, "by_library": True},
            "kernels for every step, convolutions by PyTorch's library",
        ),
    ],
    ids=str,
)
def test_how_it_is_run_is_said(backend, options, words, monkeypatch, capfd):
    sample = Sample("said", T=3, N=1, C=4, K=32, H=5, W=9, kernel=(3, 5))
    name = backend(**options)
    BACKENDS[name].conv_gru(*sample.arguments(torch.bfloat16), save_gates=False)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("CONVGRU_FUSED_VERBOSE", "1")
    run(name, sample, torch.bfloat16)
    forward, backward = capfd.readouterr().err.splitlines()
    problem = "T=3 N=1 K=32 5x9, kernel 3x5, BFloat16: "
    assert forward.startswith(f"convgru_fused: gru-rcn forward, {problem}{words}")
    assert backward.startswith(f"convgru_fused: gru-rcn backward, {problem}{words[:10]}")


@pytest.fixture
def autotune(monkeypatch, tmp_path):
    """The file in which the fastest ways are remembered; each time it is asked for, of another folder."""
    monkeypatch.setenv("CONVGRU_FUSED_AUTOTUNE", "1")
    folders = (tmp_path / str(i) / "cache" for i in range(9))

    def remembered_in(*lines):
        folder = next(folders)
        monkeypatch.setenv("CONVGRU_FUSED_CACHE", str(folder))
        if lines:
            folder.mkdir(parents=True)
            (folder / "cuda_ways.txt").write_text("".join(f"{line}\n" for line in lines))
        return folder / "cuda_ways.txt"

    return remembered_in


TUNED = Sample("tuned", T=3, N=1, C=8, K=16, H=12, W=12)


def test_the_fastest_way_is_measured_once(backend, autotune):
    """Which is PyTorch's library: what runs the kernels here is a hundred times as slow."""
    file = autotune()
    name = backend()
    for T in (3, 2, 1):
        sample = dataclasses.replace(TUNED, T=T)
        output, gradients = run(name, sample, torch.float32)
        assert_close_to_reference(output, reference(sample, torch.float32)[0])
        assert_gradients_close(gradients, reference(sample, torch.float32)[1])
    torch_release = ".".join(torch.__version__.split(".")[:2])
    assert file.read_text().splitlines() == [
        f"library: host, torch {torch_release}, gru-rcn {what}, {steps}, "
        "N=1 C=8 3x3 K=16 12x12, kernel 3x3, Float"
        for steps in ("steps", "one step")
        for what in ("forward for backward", "backward")
    ]


@pytest.mark.parametrize(
    ("way", "options", "words"),
    [
        ("one-kernel", {}, "one kernel, "),
        ("kernels", {}, "kernels for every step, convolutions by our own\n"),
        ("library", {}, "kernels for every step, convolutions by PyTorch's library\n"),
        (
            "warpgroups",
            {"resident_blocks": 0, "warpgroups": True},
            "kernels for every step, convolutions by our own of warpgroups\n",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_the_way_that_is_remembered_is_taken(backend, autotune, way, options, words, monkeypatch, capfd):
    name = backend(**options)
    file = autotune()
    run(name, TUNED, torch.bfloat16)
    lines = [line.replace("library: ", f"{way}: ") for line in file.read_text().splitlines()]
    # With them or without them another way may be the fastest.
    assert all(line.endswith(", with warpgroups") == bool(options) for line in lines)
    file = autotune("quick: is no way", "nor is this", lines[1].replace(way, "library"), *lines)
    monkeypatch.setenv("CONVGRU_FUSED_VERBOSE", "1")
    run(name, TUNED, torch.bfloat16)
    said = capfd.readouterr().err.splitlines(keepends=True)
    assert len(said) == 2 and all(f"BFloat16: {words}" in line for line in said)
    assert file.read_text().splitlines()[3:] == lines  # nothing was measured


def test_a_cache_that_cannot_be_written(backend, autotune, capfd):
    file = autotune()
    file.parent.parent.mkdir()
    file.parent.write_text("no folder")
    output, _ = run(backend(), TUNED, torch.float64)
    assert_close_to_reference(output, reference(TUNED, torch.float64)[0])
    assert f"convgru_fused: cannot write {file}" in capfd.readouterr().err


def test_one_kernel_whose_weights_leave_little_room(library, backend, monkeypatch, capfd):
    """For windows of some channels at a time."""
    monkeypatch.setenv("CONVGRU_FUSED_VERBOSE", "1")
    sample = Sample("wide", T=2, N=1, C=4, K=256, H=1, W=70)
    args = sample.arguments(torch.bfloat16)
    output = BACKENDS[backend(resident_blocks=64)].conv_gru(*args, save_gates=False)
    assert (
        "one kernel, 64 blocks of 256 threads, tiles of 16 and 8 columns, 3 stages" in capfd.readouterr().err
    )
    assert_close_to_reference(output, reference(sample, torch.bfloat16)[0])


@pytest.mark.parametrize("tf32", [False, True], ids=["bfloat16", "tf32"])
@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("resident_blocks", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "kernel"), [((15, 16), (3, 3)), ((2, 100), (5, 1)), ((3, 71), (1, 7))], ids=str
)
def test_one_kernel_of_few_blocks(library, backend, variant, tf32, resident_blocks, size, kernel):
    """Each with tiles of all widths, and some tiles one after the other."""
    dtype = torch.float32 if tf32 else torch.bfloat16
    H, W = size
    sample = Sample("few", T=2, N=1, C=5, K=20, H=H, W=W, kernel=kernel, variant=variant, hx=True)
    before = library.cuda_on_host_cooperative_launches()
    output, gradients = run(backend(resident_blocks=resident_blocks, tf32=tf32), sample, dtype)
    expected = 1 if variant == "cudnn" and resident_blocks == 1 else 2
    assert library.cuda_on_host_cooperative_launches() == before + expected
    expected_output, expected_gradients = reference(sample, dtype)
    as_precise = torch.float16 if tf32 else dtype
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[as_precise, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[as_precise, "gradients"])


@pytest.mark.parametrize("tf32", [False, True], ids=["bfloat16", "tf32"])
@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("K", [5, 24, 40, 72])
def test_one_kernel_whose_depth_ends_within_a_piece(library, backend, K, variant, tf32):
    """Steps of the depth that have no channels are left out, and what remains is shared unevenly."""
    dtype = torch.float32 if tf32 else torch.bfloat16
    sample = Sample("uneven", T=3, N=2, C=3, K=K, H=4, W=7, kernel=(1, 3), variant=variant)
    before = library.cuda_on_host_cooperative_launches()
    output, gradients = run(backend(tf32=tf32), sample, dtype)
    assert library.cuda_on_host_cooperative_launches() == before + 2
    expected_output, expected_gradients = reference(sample, dtype)
    as_precise = torch.float16 if tf32 else dtype
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[as_precise, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[as_precise, "gradients"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(16, 8, 8), (72, 9, 8), (12, 6, 6), (10, 5, 6), (3, 5, 5)], ids=str)
def test_images_that_are_transposed(backend, shape, dtype):
    """By 16, 8, 4 bytes or by elements; in tiles of 64 by 64."""
    C, H, W = shape
    sample = Sample("transposed", T=2, N=2, C=C, K=C, H=H, W=W, hx=True)
    output, gradients = run(backend(), sample, dtype)
    expected_output, expected_gradients = reference(sample, dtype)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (1, 3), (2, 5), (0, 6)], ids=str)
def test_only_the_gradients_asked_for(backend, asked, variant):
    (sample,) = (s for s in samples("gate-bias") if s.variant == variant)
    args = sample.arguments(torch.float64)
    for index in asked:
        args[index].requires_grad_()
    output = BACKENDS[backend()].conv_gru(*args, save_gates=True)
    gradients = autograd_gradients(output, args, sample.grad_output(torch.float64))
    expected = reference(sample, torch.float64)[1]
    assert_gradients_close(gradients, Gradients(*(g if i in asked else None for i, g in enumerate(expected))))


@pytest.mark.parametrize("sample", samples("everything", "kernel-3x5"), ids=str)
def test_what_is_past_the_length_does_not_matter(backend, sample):
    args = sample.arguments(torch.float64, requires_grad=True)
    with torch.no_grad():
        for n, length in enumerate(sample.lengths):
            for images in (args[0], args[6]):
                if images is not None:
                    images[length:, n] = float("nan")
    output = BACKENDS[backend()].conv_gru(*args, save_gates=True)
    grad_output = sample.grad_output(torch.float64)
    expected_output, expected_gradients = reference(sample, torch.float64)
    assert_close_to_reference(output.detach(), expected_output)
    assert_gradients_close(autograd_gradients(output, args, grad_output), expected_gradients)
