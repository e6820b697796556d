"""The CUDA and the Triton backend on a GPU: what only a GPU can show. Skipped without one
(benchmarks/gpu_check.sh)."""

from dataclasses import replace

import pytest
import torch
from test_relu import check_operators

from convgru_fused import ConvGRU, ConvGRUCell, ops, use_backend
from convgru_fused.backends import BACKENDS, Problem
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import (
    SMOOTH_VARIANTS,
    TOLERANCES,
    Sample,
    assert_close_to_reference,
    assert_gradients_close,
    reference,
    run,
    sample_inputs,
)

NAMES = [name for name in ("cuda", "triton") if not BACKENDS[name].missing()]
if not torch.cuda.is_available() or not NAMES:
    pytest.skip("no GPU, or no kernels for one", allow_module_level=True)
# An element of a weight's gradient, which PyTorch's convolution computes, was off by up to 1.42e-5 of the
# largest on an H100 (torch 2.11.0, cuDNN 9.19; plain PyTorch's by 8.5e-6: `python -m convgru_fused.testing
# cuda eager cuda`). The margin is that of `TOLERANCES`, 4.
FP32 = replace(TOLERANCES[torch.float32, "gradients"], elementwise=4 * 1.42e-5)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=NAMES)
def gpu_backend(request):
    return request.param


def refused(backend, dtype):
    return bool(BACKENDS[backend].refused(Problem("cuda", dtype, "gru-rcn", forward_ad=False)))


@pytest.fixture(autouse=True)
def _ieee():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    yield
    conv.fp32_precision = before


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("save_gates", [True, False], ids=["kept", "recomputed"])
def test_output_and_gradients(gpu_backend, dtype, sample, save_gates):
    if refused(gpu_backend, dtype):
        pytest.skip(f"no {dtype}")
    output, gradients = run(gpu_backend, sample, dtype, "cuda", save_gates=save_gates)
    expected_output, expected_gradients = reference(sample, dtype)
    assert output.is_cuda and output.dtype == dtype
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients, tolerance=FP32 if dtype == torch.float32 else None)


@pytest.mark.parametrize("sample", list(sample_inputs(variants=["gru-rcn-relu"])), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu(gpu_backend, dtype, sample):
    if refused(gpu_backend, dtype):
        pytest.skip(f"no {dtype}")
    operators = ops.NATIVE if gpu_backend == "cuda" else ops.TRITON
    check_operators(operators.forward, operators.backward, sample, dtype, fast=False, device="cuda")


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
def test_tf32(gpu_backend, sample):
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    output, gradients = run(gpu_backend, sample, torch.float32, "cuda")
    expected_output, expected_gradients = reference(sample, torch.float32)
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[torch.float16, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[torch.float16, "gradients"])


def model_and_input(variant, dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = ConvGRU(64, 64, variant=variant, device="cuda", dtype=dtype)
    return model, torch.randn(5, 4, 64, 28, 28, device="cuda", dtype=dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeated_calls_give_the_same_bits(gpu_backend, variant):
    model, x = model_and_input(variant)
    with use_backend(gpu_backend):
        expected = model(x)[0]
        for _ in range(20):
            assert torch.equal(model(x)[0], expected)


@pytest.mark.skipif("cuda" not in NAMES, reason="the CUDA backend is not built")
@pytest.mark.skipif(torch.cuda.get_device_capability() != (9, 0), reason="wgmma is Hopper's")
@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((24, 64, 28, 28), (3, 3)), ((17, 40, 31, 30), (1, 5)), ((8, 96, 7, 130), (3, 3))],
    ids=str,
)
def test_warpgroups(variant, dtype, shape, kernel, monkeypatch, capfd):
    monkeypatch.setenv("CONVGRU_FUSED_WGMMA", "1")
    monkeypatch.setenv("CONVGRU_FUSED_VERBOSE", "1")
    C, K, H, W = shape
    sample = Sample("large", T=2, N=11, C=C, K=K, H=H, W=W, kernel=kernel, variant=variant, hx=True)
    expected_output, expected_gradients = reference(sample, dtype)
    output, gradients = run("cuda", sample, dtype, "cuda")
    assert capfd.readouterr().err.count("convolutions by our own of warpgroups") == 2
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)
    again, _ = run("cuda", sample, dtype, "cuda")
    assert torch.equal(again, output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_stream(gpu_backend, variant):
    model, x = model_and_input(variant)
    stream = torch.cuda.Stream()
    with use_backend(gpu_backend), torch.no_grad():
        expected = model(x)[0]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = torch.empty_like(x).copy_(x)
            output = model(late)[0]
        stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_capture_in_a_graph(gpu_backend, variant):
    model, x = model_and_input(variant)
    with use_backend(gpu_backend), torch.no_grad():
        for _ in range(3):
            model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x)[0]
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(output, model(x)[0])


def test_capture_of_a_loop_after_one_call(gpu_backend, monkeypatch):
    """What is captured is what ran before, even if the library may look for its fastest algorithm: it cannot
    while a graph is captured."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    cell = ConvGRUCell(64, 96, (1, 5), device="cuda", dtype=torch.bfloat16)  # 10^9 operations
    x, h = (torch.randn(1, channels, 52, 67, device="cuda", dtype=torch.bfloat16) for channels in (64, 96))
    with use_backend(gpu_backend), torch.no_grad():
        expected = cell(x, cell(x, h))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = cell(x, cell(x, h))
        graph.replay()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_in_one_graph(gpu_backend, variant):
    model, x = model_and_input(variant)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with use_backend(gpu_backend):
        torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=0, atol=0)


def test_autocast(gpu_backend):
    cell = ConvGRUCell(16, 16, device="cuda")
    x, h = torch.randn(2, 1, 16, 9, 9, device="cuda").unbind()
    with use_backend(gpu_backend), torch.autocast("cuda", dtype=torch.bfloat16):
        assert cell(x, h).dtype == torch.bfloat16


@pytest.mark.skipif("cuda" not in NAMES, reason="the CUDA backend is not built")
def test_the_fastest_way_is_measured_unless_a_graph_is_captured(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVGRU_FUSED_AUTOTUNE", "1")
    monkeypatch.setenv("CONVGRU_FUSED_CACHE", str(tmp_path))
    model, x = model_and_input("gru-rcn", torch.float32)
    with use_backend("eager"):
        expected, _ = model(x)
    with use_backend("cuda"), torch.no_grad():
        torch.testing.assert_close(model(x)[0], expected)
        lines = (tmp_path / "cuda_ways.txt").read_text().splitlines()
        assert torch.cuda.get_device_name() in lines[-1] and " forward, steps, N=4 C=64 3x3 " in lines[-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = model(x[:, :2])
        graph.replay()
        torch.testing.assert_close(output, expected[:, :2])
    assert (tmp_path / "cuda_ways.txt").read_text().splitlines() == lines
