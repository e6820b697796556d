"""torch.library.opcheck on the native operators: schema, autograd, fake kernels, dynamic AOT dispatch."""

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

from convgru_fused.ops import NATIVE, TRITON
from convgru_fused.testing import (
    assert_close_to_reference,
    assert_gradients_close,
    lay_out,
    reference,
    sample_inputs,
)

ops = torch.ops.convgru_fused

FAST = True  # the argument that stands for precision("fast")
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
NAMES = ("input", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "gate_bias")


def forward_arguments(sample, dtype, *, requires_grad=True, save_gates=True):
    return (*sample.arguments(dtype, requires_grad=requires_grad), FAST, save_gates)


def backward_arguments(sample, dtype, *, save_gates=True, mask=None):
    args = sample.arguments(dtype)
    output, gates = ops.conv_gru.default(*args, FAST, save_gates)
    *tensors, variant, reverse = args
    if mask is None:
        mask = [tensor is not None for tensor in tensors[:7]]
    return (sample.grad_output(dtype), *tensors, output, gates, variant, reverse, FAST, mask)


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
def test_forward(sample):
    opcheck(ops.conv_gru.default, forward_arguments(sample, torch.float32), test_utils=QUICK)


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
def test_backward(sample):
    opcheck(ops.conv_gru_backward.default, backward_arguments(sample, torch.float32), test_utils=QUICK)


def test_triton_has_the_schemas_of_the_native_operators():
    for native, triton in ((NATIVE.forward, TRITON.forward), (NATIVE.backward, TRITON.backward)):
        assert str(triton._schema) == str(native._schema).replace("::", "::triton_")


# Tracing takes a while, so not all samples: together these have every argument, and each of them missing.
CASES = ("plain", "no-bias-hx", "lengths-hx", "gate-bias-1x1", "no-input-1x1", "channels-last")
traced = list(sample_inputs(lambda s: s.name in [f"{case}-{s.variant}" for case in CASES]))


@pytest.mark.parametrize("sample", traced, ids=str)
def test_forward_ahead_of_time(sample):
    opcheck(
        ops.conv_gru.default, forward_arguments(sample, torch.float64), test_utils="test_aot_dispatch_dynamic"
    )


@pytest.mark.parametrize("sample", traced, ids=str)
def test_backward_ahead_of_time(sample):
    """Without a graph: torch cannot trace the double backward of its own convolution with dynamic shapes."""
    opcheck(
        ops.conv_gru_backward.default,
        backward_arguments(sample, torch.float64),
        test_utils="test_aot_dispatch_dynamic",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("save_gates", [True, False], ids=["kept", "recompute"])
@pytest.mark.parametrize("variant", ["gru-rcn", "cudnn"])
def test_other_dtypes_and_no_gates(variant, save_gates, dtype):
    sample = next(sample_inputs(lambda s: s.name == f"everything-{variant}"))
    opcheck(ops.conv_gru.default, forward_arguments(sample, dtype, save_gates=save_gates), test_utils=QUICK)
    opcheck(
        ops.conv_gru_backward.default,
        backward_arguments(sample, dtype, save_gates=save_gates),
        test_utils=QUICK,
    )


@pytest.mark.parametrize("variant", ["gru-rcn", "cudnn"])
@pytest.mark.parametrize("asked", range(7), ids=NAMES)
def test_backward_of_one_argument(asked, variant):
    """The output mask leaves out the others: they come back empty."""
    sample = next(sample_inputs(lambda s: s.name == f"gate-bias-{variant}"))
    args = backward_arguments(sample, torch.float64, mask=[i == asked for i in range(7)])
    opcheck(ops.conv_gru_backward.default, args, test_utils=QUICK)
    gradients = ops.conv_gru_backward.default(*args)
    assert [gradient.numel() > 0 for gradient in gradients] == [i == asked for i in range(7)]
    expected = reference(sample, torch.float64)[1][asked]
    assert_gradients_close({NAMES[asked]: gradients[asked]}, {NAMES[asked]: expected})


@pytest.mark.parametrize("sizes", [dict(T=0), dict(N=0)], ids=str)
def test_empty(sizes):
    sample = replace(next(sample_inputs(lambda s: s.name == "gate-bias-gru-rcn")), **sizes)
    opcheck(ops.conv_gru.default, forward_arguments(sample, torch.float32), test_utils=QUICK)
    opcheck(ops.conv_gru_backward.default, backward_arguments(sample, torch.float32), test_utils=QUICK)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
@pytest.mark.parametrize("variant", ["gru-rcn", "cudnn"])
def test_backward_accepts_its_saved_tensors_in_any_layout(variant, layout):
    """They are ordinary arguments of an ordinary operator; vmap passes slices of them."""
    sample = next(sample_inputs(lambda s: s.name == f"everything-{variant}"))
    args = list(backward_arguments(sample, torch.float64))
    expected_output, expected_gradients = reference(sample, torch.float64)
    assert_close_to_reference(args[9], expected_output)
    args[9], args[10] = lay_out(args[9], layout), lay_out(args[10], layout)
    assert_gradients_close(
        dict(zip(NAMES, ops.conv_gru_backward.default(*args), strict=True)),
        dict(zip(NAMES, expected_gradients, strict=True)),
    )


@pytest.mark.parametrize("variant", ["gru-rcn", "cudnn"])
def test_backward_of_weights_in_channels_last(variant):
    sample = next(sample_inputs(lambda s: s.name == f"everything-{variant}"))
    ops = torch.ops.convgru_fused
    args = list(sample.arguments(torch.float32))
    args[2], args[3] = lay_out(args[2], "channels_last"), lay_out(args[3], "channels_last")
    output, gates = ops.conv_gru.default(*args, True, True)
    *tensors, v, reverse = args
    mask = [t is not None for t in tensors[:7]]
    backward = (sample.grad_output(torch.float32), *tensors, output, gates, v, reverse, True, mask)
    opcheck(ops.conv_gru_backward.default, backward, test_utils=("test_schema", "test_faketensor"))
