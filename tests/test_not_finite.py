"""Infinities and NaNs reach the same elements as in plain PyTorch, whatever algorithm the finite ones take:
its tiles must not spread them, nor turn an infinity into a NaN."""

import math

import pytest
import torch

from convgru_fused import precision
from convgru_fused.backends import BACKENDS
from convgru_fused.testing import Sample, assert_close_to_reference, autograd_gradients

each_value = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
each_setting = pytest.mark.parametrize("setting", ["fast", "strict"])

SAMPLES = [
    Sample(
        f"{variant}-{kh}x{kw}", T=3, N=2, C=16, K=16, H=20, W=23, kernel=(kh, kw), hx=True, variant=variant
    )
    for variant, kh, kw in (("gru-rcn", 3, 3), ("cudnn", 3, 3), ("gru-rcn", 1, 5), ("gru-rcn", 5, 5))
]
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def run(backend, sample, where, value):
    """Output and gradients with one element of the argument `where` (0 input, 1 hx, ...) or of the output's
    gradient ("grad") replaced."""
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in sample.arguments(torch.float32)]
    grad_output = sample.grad_output(torch.float32)
    target = grad_output if where == "grad" else args[where]
    target.view(-1)[target.numel() // 2 + 5] = value
    args = tuple(a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    output = BACKENDS[backend].conv_gru(*args, save_gates=True)
    return output.detach(), autograd_gradients(output, args, grad_output)


def assert_same(actual, expected, name):
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(expected)), (name, kind.__name__)
    finite = expected.isfinite()
    assert_close_to_reference(
        torch.where(finite, actual, 0.0), torch.where(finite, expected, 0.0).double(), name
    )


@each_sample
@each_value
@each_setting
@pytest.mark.parametrize("where", [0, 1], ids=["input", "hx"])
def test_output(sample, value, setting, where):
    with precision(setting):
        actual, _ = run("cpu", sample, where, value)
    expected, _ = run("eager", sample, where, value)
    assert_same(actual, expected, "output")


@each_value
@each_setting
@pytest.mark.parametrize("sample", SAMPLES[:2], ids=str)
def test_gradients(sample, value, setting):
    """Where the gradient of the output is not finite; those of PyTorch's convolutions then are infinite or
    NaN depending on the order of their sums, so the two count as the same."""
    with precision(setting):
        _, actual = run("cpu", sample, "grad", value)
    _, expected = run("eager", sample, "grad", value)
    for name, a, e in zip(actual._fields, actual, expected, strict=True):
        if a is not None:
            assert torch.equal(a.isfinite(), e.isfinite()), name


@each_setting
def test_overflow_of_a_fast_algorithm_is_none(setting):
    """Numbers so large that Winograd's intermediate values overflow, while the sums do not."""
    sample = Sample("large", T=2, N=1, C=16, K=16, H=20, W=20, input_scale=1e37)
    with precision(setting):
        output = BACKENDS["cpu"].conv_gru(*sample.arguments(torch.float32), save_gates=False)
    assert output.isfinite().all()
