"""Cells of every style are found and replaced, by what they compute; what is nearly one is left alone."""

import copy

import pytest
import torch
from cell_styles import CELLS, OTHERS, WRAPPERS
from torch import nn

import convgru_fused
from convgru_fused import fuse
from convgru_fused.fusing.recording import arguments_of, tensors_of
from convgru_fused.testing import TOLERANCES, assert_close_to_reference, assert_gradients_close


def made(make, dtype=torch.float64):
    module, args = make()
    args = copy.deepcopy(args)
    for _, tensor in arguments_of(args, {}):
        tensor.data = tensor.data.to(dtype)
        tensor.requires_grad_()
    return module.to(dtype), args


def outcome(module, args):
    """Results and gradients by name; what was given is left as it was."""
    module, args = copy.deepcopy(module), copy.deepcopy(args)
    result = module(*args)
    results = dict(tensors_of(result, "result"))
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64)).sum() for r in results.values()
    )
    variables = dict(arguments_of(args, {})) | {n: p for n, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(total, list(variables.values()), allow_unused=True)
    return results, {
        name: torch.zeros_like(variables[name]) if g is None else g
        for name, g in zip(variables, gradients, strict=True)
    }


def assert_same(actual, expected):
    tolerance = TOLERANCES[torch.float64, "gradients"]
    assert actual[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert_close_to_reference(actual[0][name], tensor, name, tolerance=tolerance)
    assert_gradients_close(actual[1], expected[1], tolerance=tolerance)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [*CELLS, *WRAPPERS])
def test_replaced(name, training):
    module, args = made((CELLS | WRAPPERS)[name])
    module.train(training)
    expected = outcome(module, args)
    report = fuse(module, args)
    assert [r.path for r in report.skipped] == []
    assert report.replaced
    assert all(record.max_error < 1e-14 for record in report.replaced)
    assert_same(outcome(module, args), expected)


@pytest.mark.parametrize("name", [n for n in CELLS if n not in ("StridedInput", "DictOfTensors")])
def test_cells_are_replaced_without_examples(name):
    module, args = made(CELLS[name])
    expected = outcome(module, args)
    report = fuse(module)
    assert report.replaced and not report.skipped, str(report)
    assert_same(outcome(module, args), expected)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_become_sequences(name):
    module, args = made(WRAPPERS[name])
    report = fuse(module, args)
    (record,) = (r for r in report.replaced if r.path == "")
    assert "sequence" in record.recognised


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_alone(name):
    module, args = made(OTHERS[name])
    report = fuse(module, args)
    assert not report.replaced
    assert "forward" not in vars(module)


REASONS = {
    "Lstm": "no state that a sigmoid gate blends with something",
    "MinGru": "candidate: no convolution of the state",
    "SignOfGate": "a formula of tanh, the state in the place of the candidate's tanh",
    "SignOfCandidate": "a formula of tanh in the place of the candidate's tanh",
    "SignOfState": "no state that a sigmoid gate blends with something",
    "SignOfReset": "candidate: a convolution of a formula of sigmoid, the state",
    "LeakyCandidate": "LeakyReLU(0.2) in the place of the candidate's tanh",
    "ReluBehindReset": "a reset gate behind the convolution, and ReLU as candidate",
    "NormInGates": "reset gate: no convolution of the state, but GroupNorm",
    "ReflectPadding": "candidate: a convolution with padding (0, 0) for kernel (3, 3) of reflect padding",
    "NormInCandidate": "candidate: no convolution of the state, but BatchNorm",
    "DilatedState": "reset gate: a convolution with dilation (2, 2)",
    "LooksAtValues": "its control flow depends on values of tensors",
    "Raises": "raised RuntimeError: no reset today",
}


@pytest.mark.parametrize("name", REASONS)
def test_reason_for_leaving_alone(name):
    module, args = made(OTHERS[name])
    (record,) = fuse(module, args).skipped
    assert record.reason == REASONS[name]
    assert record.class_name == name


@pytest.mark.parametrize("name", ["NormInGates", "LoopOfNormInGates"])
@pytest.mark.parametrize("with_examples", [True, False])
def test_a_first_step_without_a_state_does_not_make_a_cell(name, with_examples):
    module, args = made(OTHERS[name])
    report = fuse(module, args) if with_examples else fuse(module)
    (record,) = report.skipped
    assert not report.replaced and record.class_name == "NormInGates"
    assert record.reason == REASONS["NormInGates"]


@pytest.mark.parametrize("name", ["Attention", "GatedConvolution"])
def test_gates_without_a_state_are_not_mentioned(name):
    module, args = made(OTHERS[name])
    for report in (fuse(module, args), fuse(module)):
        assert not report.replaced and not report.skipped


def test_float32_within_tolerance():
    """In float32 the replacement is as close to float64 as the library's own layers are."""
    for make in CELLS.values():
        module, args = made(make)
        expected = outcome(module, args)[0]
        module, args = module.float(), copy.deepcopy(args)
        for _, tensor in arguments_of(args, {}):
            tensor.data = tensor.data.float()
        fuse(module, args)
        with torch.no_grad():
            result = module(*args)
        for name, tensor in tensors_of(result, "result"):
            assert_close_to_reference(tensor, expected[name], name)


def test_model_without_cells_is_left_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Tanh())
    before = {name: dict(vars(child)) for name, child in model.named_modules()}
    report = fuse(model, torch.randn(1, 3, 8, 8))
    assert not report.replaced and not report.skipped
    assert str(report) == "Sequential: no ConvGRU found, nothing changed"
    assert {name: dict(vars(child)) for name, child in model.named_modules()} == before


def test_own_layers_are_left_alone():
    model = nn.ModuleList([convgru_fused.ConvGRU(3, 4), convgru_fused.ConvGRUCell(3, 4)])
    assert not fuse(model).replaced
