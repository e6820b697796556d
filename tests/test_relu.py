"""The variant "gru-rcn-relu", whose gradient jumps: two right ones differ where rounding decides on which
side of zero a candidate's pre-activation lies. In float64 that does not happen here; below, the reference
takes over that decision from the gates that the operator kept."""

from itertools import count

import pytest
import torch

from convgru_fused import ConvGRU, eager, ops
from convgru_fused.testing import (
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    reference,
    run,
    sample_inputs,
)

SAMPLES = list(sample_inputs(variants=["gru-rcn-relu"]))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def reference_with_signs(sample, dtype, passes):
    """As `reference`; passes (T,N,K,H,W): where a candidate is its pre-activation, elsewhere it is zero."""
    args = [
        arg.double().requires_grad_() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
        for arg in sample.arguments(dtype)
    ]
    visited = count()

    def decided(a):
        i = next(visited)
        return a * passes[sample.T - 1 - i if sample.reverse else i]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", decided)
        output = eager.conv_gru(*args)
    assert next(visited) == sample.T
    return output.detach(), autograd_gradients(output, args, sample.grad_output(dtype).double())


def check_operators(forward, backward, sample, dtype, fast, device="cpu"):
    """The operators conv_gru and conv_gru_backward. Gates that are computed again are left out
    in 16 bits: sums that the passes round differently give them other signs."""
    args = sample.arguments(dtype, device)
    output, gates = forward(*args, fast, True)
    passes = gates.unflatten(-1, (3, -1))[..., 2, :].movedim(-1, 2).cpu() > 0
    expected_output, expected_gradients = reference_with_signs(sample, dtype, passes)
    assert_close_to_reference(output, expected_output)
    assert_close_to_reference(output, reference(sample, dtype)[0])
    assert passes.any() and not passes.all()
    mask = [arg is not None for arg in args[:7]]
    *tensors, variant, reverse = args
    for kept in (gates, gates.new_empty(0)) if dtype.itemsize > 2 else (gates,):
        gradients = backward(
            sample.grad_output(dtype, device), *tensors, output, kept, variant, reverse, fast, mask
        )
        gradients = (g if wanted else None for g, wanted in zip(gradients, mask, strict=True))
        assert_gradients_close(eager.Gradients(*gradients), expected_gradients)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators(dtype, sample):
    check_operators(ops.NATIVE.forward, ops.NATIVE.backward, sample, dtype, fast=True)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_through_autograd(sample):
    expected_output, expected_gradients = reference(sample, torch.float64)
    output, gradients = run("cpu", sample, torch.float64)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


def test_zero_is_on_the_side_without_gradient(backend):
    """As in torch.relu."""
    model = ConvGRU(2, 3, bias=False, variant="gru-rcn-relu")
    x = torch.zeros(1, 1, 2, 4, 4, requires_grad=True)
    model(x)[0].sum().backward()
    assert not x.grad.any()


def test_nan_goes_through(backend):
    model = ConvGRU(2, 3, variant="gru-rcn-relu")
    x = torch.randn(1, 1, 2, 4, 4)
    x[0, 0, 0, 1, 1] = float("nan")
    assert model(x)[0].isnan().any()
