"""Every backend against the float64 reference: outputs, every gradient, and only the gradients asked for."""

from itertools import combinations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convgru_fused import ConvGRU, ConvGRUCell, use_backend
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import VARIANTS, Gradients
from convgru_fused.testing import (
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    reference,
    run,
    sample_inputs,
)

# Eager in float64 is the reference itself.
RUNS = [("cpu", torch.float64)]
RUNS += [
    (name, dtype) for name in ("cpu", "eager") for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=str)
def test_output_and_gradients(name, dtype, sample):
    expected_output, expected_gradients = reference(sample, dtype)
    output, gradients = run(name, sample, dtype)
    assert output.dtype == dtype
    assert all(gradient is None or gradient.dtype == dtype for gradient in gradients)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs()), ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_from_recomputed_gates(dtype, sample):
    """Not bitwise those from gates that were kept: they may be computed for all steps at once."""
    output, gradients = run("cpu", sample, dtype, save_gates=False)
    expected_output, expected_gradients = reference(sample, dtype)
    assert_close_to_reference(output, expected_output)
    assert_gradients_close(gradients, expected_gradients)


ASKED = [subset for size in range(1, 8) for subset in combinations(range(7), size)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("save_gates", [True, False], ids=["kept", "recomputed"])
def test_every_subset_of_gradients(backend, variant, save_gates):
    """Each of the 127 subsets of the differentiable arguments gets its gradients and no others."""
    sample = next(sample_inputs(lambda s: s.name == f"gate-bias-{variant}", VARIANTS))
    _, expected = reference(sample, torch.float64)
    args = sample.arguments(torch.float64)
    for asked in ASKED:
        for index, arg in enumerate(args[:7]):
            arg.requires_grad_(index in asked)
        output = BACKENDS[backend].conv_gru(*args, save_gates=save_gates)
        gradients = autograd_gradients(output, args, sample.grad_output(torch.float64))
        some = Gradients(*(gradient if i in asked else None for i, gradient in enumerate(expected)))
        assert_gradients_close(gradients, some)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gate_bias_is_differentiable_alone(backend, variant):
    """The context of a refinement loop is hoisted; a frozen cell may still be asked for its gradient."""
    sample = next(sample_inputs(lambda s: s.name == f"no-input-1x1-{variant}", VARIANTS))
    args = sample.arguments(torch.float64)
    args[6].requires_grad_()
    output = BACKENDS[backend].conv_gru(*args, save_gates=True)
    gradients = autograd_gradients(output, args, sample.grad_output(torch.float64))
    expected = Gradients(*[None] * 6, gate_bias=reference(sample, torch.float64)[1].gate_bias)
    assert_gradients_close(gradients, expected)


class OperatorCalls(TorchDispatchMode):
    """Records save_gates of each call of the native operator, and how many gates each kept."""

    def __init__(self):
        super().__init__()
        self.save_gates, self.gates_kept = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.convgru_fused.conv_gru.default:
            self.save_gates.append(args[-1])
            self.gates_kept.append(result[1].numel())
        return result


def operator_calls(model, x):
    with use_backend("cpu"), OperatorCalls() as calls:
        model(x)
    return calls


@pytest.mark.parametrize(("variant", "planes"), [("gru-rcn", 3), ("cudnn", 4)])
def test_gates_are_kept_only_for_a_backward_pass(variant, planes):
    x = torch.randn(4, 2, 3, 5, 9)
    model = ConvGRU(3, 8, num_layers=2, bidirectional=True, variant=variant)
    plane = x[:, :, :1].numel() * 8
    calls = operator_calls(model, x)
    assert calls.save_gates == [True] * 4
    assert calls.gates_kept == [planes * plane] * 4
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            calls = operator_calls(model, x)
        assert calls.save_gates == [False] * 4
        assert calls.gates_kept == [0] * 4
    assert operator_calls(model.requires_grad_(False), x).save_gates == [False] * 4
    assert operator_calls(model, x.requires_grad_()).save_gates == [True] * 4


def test_recompute_keeps_no_gates():
    calls = operator_calls(ConvGRU(3, 8, recompute=True), torch.randn(4, 2, 3, 5, 9))
    assert calls.save_gates == [False]


def test_the_cell_is_one_call_of_the_operator():
    calls = operator_calls(ConvGRUCell(3, 8), torch.randn(2, 3, 5, 9))
    assert calls.save_gates == [True]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=["kept", "recompute"])
def test_module_agrees_with_eager_through_layers_and_directions(variant, options):
    """The operator is one layer and direction; here the whole module is compared, in float64."""
    model = ConvGRU(3, 8, num_layers=2, bidirectional=True, variant=variant, **options).double()
    x = torch.randn(5, 3, 3, 5, 9, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(4, 3, 8, 5, 9, dtype=torch.float64, requires_grad=True)
    gate_bias = torch.randn(5, 3, 48, 1, 1, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, "hx": hx, "gate_bias": gate_bias, **dict(model.named_parameters())}
    results = {}
    for name in ("cpu", "eager"):
        with use_backend(name):
            output, h_n = model(x, hx, torch.tensor([5, 0, 3]), gate_bias)
        gradients = torch.autograd.grad((output.sin().sum() + h_n.cos().sum()), list(leaves.values()))
        results[name] = output, h_n, dict(zip(leaves, gradients, strict=True))
    assert_close_to_reference(results["cpu"][0], results["eager"][0])
    assert_close_to_reference(results["cpu"][1], results["eager"][1], "h_n")
    assert_gradients_close(results["cpu"][2], results["eager"][2])
