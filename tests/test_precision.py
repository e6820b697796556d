"""precision("fast" | "strict"): what each promises of fp32 on the CPU, over a long sequence."""

import pytest
import torch

from convgru_fused import ConvGRU, numerics, precision, use_backend
from convgru_fused.testing import Sample, error_ratios, lay_out

# Fifty steps, enough tiles and channels for Winograd's algorithm, tiles cut off at the edges. Channels last,
# which is what the native backend computes in: PyTorch's own error depends on the memory format by more than
# "strict" allows.
LONG = dict(T=50, N=1, C=32, K=64, H=22, W=19, hx=True, layout="channels_last")
# Scaled by 100 the inputs saturate the gates, by 0.01 they leave them in the linear part of their curve.
CASES = [
    Sample(f"long-{variant}-{kh}x{kw}-{scale}", **LONG, kernel=(kh, kw), variant=variant, input_scale=scale)
    for variant, kh, kw in (("gru-rcn", 3, 3), ("cudnn", 3, 3), ("gru-rcn", 1, 5), ("gru-rcn", 5, 1))
    for scale in (1, 100, 0.01)
] + [
    # Many channels: long chains of additions.
    Sample(f"wide-{kh}x{kw}", **{**LONG, "C": 256, "H": 21}, kernel=(kh, kw))
    for kh, kw in ((3, 3), (1, 5))
]
PROMISES = {
    "fast": (16, 8),
    "strict": (2.5, 2),
}  # largest and rms error, as multiples of PyTorch's (docs/cpu.md)


@pytest.mark.parametrize("setting", PROMISES)
@pytest.mark.parametrize("sample", CASES, ids=str)
def test_error_against_float64(sample, setting):
    with precision(setting):
        ratios = error_ratios(sample)
    largest, rms = PROMISES[setting]
    assert all(ratio[0] <= largest and ratio[1] <= rms for ratio in ratios.values()), ratios


def output(setting, dtype=torch.float32, layout="contiguous", **options):
    torch.manual_seed(0)
    model = ConvGRU(16, 32, **options).to(dtype)
    with precision(setting), use_backend("cpu"):
        return model(lay_out(torch.randn(3, 2, 16, 13, 17).to(dtype), layout))[0]


def test_the_setting_makes_a_difference_where_it_may():
    """The test of the tests above: "fast" is another algorithm. Only fp32 with certain kernels has it."""
    for kernel_size in (3, (1, 5), (5, 1)):
        fast, strict = (output(setting, kernel_size=kernel_size) for setting in PROMISES)
        assert not torch.equal(fast, strict), kernel_size
    assert torch.equal(output("fast", torch.float64), output("strict", torch.float64))
    assert torch.equal(output("fast", torch.bfloat16), output("strict", torch.bfloat16))
    assert torch.equal(output("fast", kernel_size=1), output("strict", kernel_size=1))


def test_context_manager_and_function():
    assert numerics.is_fast()
    with precision("strict"):
        assert not numerics.is_fast()
        with precision("fast"):
            assert numerics.is_fast()
        assert not numerics.is_fast()
    assert numerics.is_fast()
    before = precision("strict")
    try:
        assert not numerics.is_fast()  # without a block it stays
    finally:
        before.__exit__()
    assert numerics.is_fast()


def test_a_context_manager_that_is_used_again():
    strict = precision("strict")
    for _ in range(2):
        with strict:
            assert not numerics.is_fast()
        assert numerics.is_fast()


def test_backward_keeps_the_setting_of_the_forward_pass():
    """It belongs to the call, not to the moment at which autograd runs."""
    gradients = []
    for backward_setting in ("strict", "fast"):
        torch.manual_seed(0)
        model, x = ConvGRU(16, 32), torch.randn(3, 2, 16, 13, 17)
        with precision("strict"):
            value = model(x)[0].square().sum()
        with precision(backward_setting):
            value.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_environment_variable(run_python):
    code = "from convgru_fused import numerics; print(numerics.is_fast())"
    assert run_python(code, CONVGRU_FUSED_PRECISION="strict").stdout == "False\n"


def test_environment_variable_of_an_unknown_setting(run_python):
    result = run_python("import convgru_fused", CONVGRU_FUSED_PRECISION="exact")
    assert result.returncode == 1
    words = "environment variable CONVGRU_FUSED_PRECISION: expected one of 'fast', 'strict', got 'exact'"
    assert result.stderr.splitlines()[-1] == f"ValueError: {words}"


def test_on_a_gpu_torchs_switch_of_tf32_decides():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        for precision in ("tf32", "ieee"):
            conv.fp32_precision = precision
            assert numerics.allows_fast("cuda") == (precision == "tf32")
    finally:
        conv.fp32_precision = before
