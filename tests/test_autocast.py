"""Autocast: computed in its dtype, whatever the backend; gradients in the dtype of what they belong to."""

import pytest
import torch

from convgru_fused import ConvGRU, ConvGRUCell, use_backend
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import (
    SMOOTH_VARIANTS,
    TOLERANCES,
    assert_close_to_reference,
    assert_gradients_close,
)

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def autocast(dtype=torch.bfloat16, enabled=True):
    return torch.autocast("cpu", dtype, enabled)


@pytest.mark.parametrize("variant", SMOOTH_VARIANTS)
@each_dtype
def test_output_and_gradients(backend, variant, dtype):
    """What one would get by converting the model and its input, but for the dtype of the gradients."""
    model = ConvGRU(3, 8, bidirectional=True, variant=variant)
    x = torch.randn(4, 2, 3, 5, 9, requires_grad=True)
    hx = torch.randn(2, 2, 8, 5, 9, requires_grad=True)
    leaves = {"x": x, "hx": hx, **dict(model.named_parameters())}
    with autocast(dtype):
        output, h_n = model(x, hx)
    assert output.dtype == h_n.dtype == dtype
    weights = torch.linspace(1, 2, 5 * 9).view(5, 9)
    gradients = dict(
        zip(leaves, torch.autograd.grad((output * weights).sum(), list(leaves.values())), strict=True)
    )
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())

    rounded = {name: leaf.detach().to(dtype).double().requires_grad_() for name, leaf in leaves.items()}
    parameters = {name: rounded[name] for name, _ in model.named_parameters()}
    with use_backend("eager"):
        expected, _ = torch.func.functional_call(model, parameters, (rounded["x"], rounded["hx"]))
    value = (expected * weights.to(dtype).double()).sum()
    expected_gradients = dict(zip(leaves, torch.autograd.grad(value, list(rounded.values())), strict=True))
    assert_close_to_reference(output, expected)
    assert_gradients_close(gradients, expected_gradients, tolerance=TOLERANCES[dtype, "gradients"])


def test_float64_is_left_alone(backend):
    model = ConvGRU(3, 8, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 5, 9, dtype=torch.float64)
    expected, _ = model(x)
    with autocast():
        output, h_n = model(x)
    assert output.dtype == h_n.dtype == torch.float64
    assert torch.equal(output, expected)


@each_dtype
def test_mixed_inputs_are_allowed_only_under_autocast(backend, dtype):
    model = ConvGRU(3, 8)
    x = torch.randn(4, 2, 3, 5, 9)
    with autocast(dtype):
        output, _ = model(x.to(dtype), torch.zeros(1, 2, 8, 5, 9))
        expected, _ = model(x.to(dtype))
    assert torch.equal(output, expected)
    with pytest.raises(ValueError, match=f"input: expected the weights' dtype torch.float32, got {dtype}"):
        model(x.to(dtype))
    with (
        autocast(dtype),
        pytest.raises(ValueError, match="input: expected the weights' dtype torch.float32, got"),
    ):
        model(x.double())


def test_a_region_without_autocast_is_left_alone(backend):
    model, x = ConvGRU(3, 8), torch.randn(4, 2, 3, 5, 9)
    expected, _ = model(x)
    with autocast(), autocast(enabled=False):
        assert torch.equal(model(x)[0], expected)


def test_everything_that_can_be_given_is_cast(backend):
    model = ConvGRU(3, 8, num_layers=2, bidirectional=True)
    x, hx = torch.randn(4, 2, 3, 5, 9), torch.randn(4, 2, 8, 5, 9)
    gate_bias = torch.randn(4, 2, 48, 1, 1)
    with autocast():
        output, h_n = model(x, hx, torch.tensor([4, 2]), gate_bias)
        only_gates, _ = model(None, hx, gate_bias=gate_bias)
        cell = ConvGRUCell(3, 8)(x[0], hx[0])
    assert output.dtype == h_n.dtype == only_gates.dtype == cell.dtype == torch.bfloat16


def test_backends_give_the_same_dtype_and_nearly_the_same_values():
    """A frozen model within autocast, as at inference."""
    model, x = ConvGRU(3, 8, num_layers=2).requires_grad_(False), torch.randn(4, 2, 3, 5, 9)
    outputs = {}
    for name in ("cpu", "eager"):
        with use_backend(name), autocast(), torch.inference_mode():
            outputs[name], _ = model(x)
    assert outputs["cpu"].dtype == outputs["eager"].dtype == torch.bfloat16
    assert_close_to_reference(outputs["cpu"], outputs["eager"].double())


def test_a_training_step(backend):
    """Parameters stay float32 and move; the loss falls."""
    model, x = ConvGRU(3, 8), torch.randn(4, 2, 3, 5, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with autocast():
            loss = (model(x)[0].float() - 0.5).square().mean()
        loss.backward()
        assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


def test_double_backward_within_autocast_is_in_the_dtypes_of_the_forward(backend):
    model, x = ConvGRU(3, 4), torch.randn(3, 2, 3, 5, 5, requires_grad=True)

    def twice(enabled):
        output = model(x)[0]
        with autocast(enabled=enabled):
            (gradient,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), [x, *model.parameters()])

    for within, without in zip(twice(True), twice(False), strict=True):
        assert torch.equal(within, without)


def test_what_autocast_allows_a_cell_is_not_remembered():
    cell, x = ConvGRUCell(3, 8), torch.randn(2, 3, 5, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        cell(x)
    with pytest.raises(ValueError, match="input: expected the weights' dtype torch.float32"):
        cell(x)
