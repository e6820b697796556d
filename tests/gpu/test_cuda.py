"""The CUDA backend on a GPU: what only a GPU can show. Skipped without one (benchmarks/gpu_check.sh)."""

import pytest
import torch

from convgru_fused import ConvGRU, ConvGRUCell, use_backend
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import (
    TOLERANCES,
    assert_close_to_reference,
    assert_gradients_close,
    reference,
    run,
    sample_inputs,
)

if not torch.cuda.is_available() or BACKENDS["cuda"].missing():
    pytest.skip("no GPU, or no kernels for one", allow_module_level=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
def test_output_and_gradients(dtype, sample, save_gates):
    output, gradients = run("cuda", sample, dtype, "cuda", save_gates=save_gates)
    expected_output, expected_gradients = reference(sample, dtype)
    assert output.is_cuda and output.dtype == dtype
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs(variants=["gru-rcn-relu"])), ids=str)
def test_relu(sample):
    expected_output, expected_gradients = reference(sample, torch.float64)
    output, gradients = run("cuda", sample, torch.float64, "cuda")
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
def test_tf32(sample):
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    output, gradients = run("cuda", sample, torch.float32, "cuda")
    expected_output, expected_gradients = reference(sample, torch.float32)
    assert_close_to_reference(output, expected_output, tolerance=TOLERANCES[torch.float16, "output"])
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[torch.float16, "gradients"])


def model_and_input(variant, dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = ConvGRU(64, 64, variant=variant, device="cuda", dtype=dtype)
    return model, torch.randn(5, 4, 64, 28, 28, device="cuda", dtype=dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeated_calls_give_the_same_bits(variant):
    model, x = model_and_input(variant)
    with use_backend("cuda"):
        expected = model(x)[0]
        for _ in range(20):
            assert torch.equal(model(x)[0], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_stream(variant):
    model, x = model_and_input(variant)
    stream = torch.cuda.Stream()
    with use_backend("cuda"), torch.no_grad():
        expected = model(x)[0]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = torch.empty_like(x).copy_(x)
            output = model(late)[0]
        stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_capture_in_a_graph(variant):
    model, x = model_and_input(variant)
    with use_backend("cuda"), torch.no_grad():
        for _ in range(3):
            model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x)[0]
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(output, model(x)[0])


def test_autocast():
    cell = ConvGRUCell(16, 16, device="cuda")
    x, h = torch.randn(2, 1, 16, 9, 9, device="cuda").unbind()
    with use_backend("cuda"), torch.autocast("cuda", dtype=torch.bfloat16):
        assert cell(x, h).dtype == torch.bfloat16
