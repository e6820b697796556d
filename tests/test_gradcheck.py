"""First and second derivatives against finite differences, in float64.

Nothing is compared with but the function itself, so this judges the eager backend too.
"""

from itertools import product

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convgru_fused import functional
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import VARIANTS
from convgru_fused.testing import Sample, assert_gradients_close

# As small as can be, with two hidden channels and an image that has edges.
TINY = dict(T=2, N=1, C=1, K=2, H=2, W=2, kernel=(1, 3))
CASES = {
    "plain": {},
    "no-bias-hx": dict(bias=False, hx=True),
    "lengths": dict(N=3, W=1, hx=True, lengths=(2, 0, 1)),
    "gate-bias": dict(hx=True, gate_bias="full"),
    "gate-bias-1x1": dict(gate_bias="1x1"),
    "no-input": dict(input=False, gate_bias="full"),
    "no-input-1x1": dict(input=False, hx=True, gate_bias="1x1"),
    "kernel-3x3": dict(W=3, kernel=(3, 3), hx=True),
}


def samples():
    for (case, options), variant, reverse in product(CASES.items(), VARIANTS, (False, True)):
        name = f"{case}-{variant}{'-reverse' if reverse else ''}"
        yield Sample(name, **{**TINY, **options}, variant=variant, reverse=reverse)


def function_of_tensors(backend, sample):
    """The recurrence as a function of the arguments that have a gradient, and these."""
    args = sample.arguments(torch.float64, requires_grad=True)
    places = [i for i, arg in enumerate(args[:7]) if arg is not None]

    def function(*tensors):
        given = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return BACKENDS[backend].conv_gru(*given, save_gates=True)

    return function, tuple(args[place] for place in places)


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_gradcheck(backend, sample):
    function, tensors = function_of_tensors(backend, sample)
    assert gradcheck(function, tensors, check_batched_grad=True)


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_gradgradcheck(backend, sample):
    """Every element of the Hessian; of eager, whose derivatives are autograd's own, a random projection."""
    function, tensors = function_of_tensors(backend, sample)
    assert gradgradcheck(function, tensors, fast_mode=backend == "eager")


def cell_arguments(**options):
    """input, hx, weight_ih, weight_hh, bias_ih, bias_hh of one step on 2x2 pixels, and gate_bias."""
    sample = Sample("cell", **{**TINY, "T": 1, **options}, hx=True, gate_bias="1x1")
    input, hx, *parameters, gate_bias = sample.arguments(torch.float64, requires_grad=True)[:7]
    return [t.detach().requires_grad_() for t in (input[0], hx, *parameters, gate_bias[0])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_cell(backend, variant):
    def function(*tensors):
        return functional.conv_gru_cell(*tensors[:6], gate_bias=tensors[6], variant=variant)

    tensors = cell_arguments()
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_directions_and_both_results(backend, variant):
    """Through the public function, where output and h_n are both differentiated."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_()

    params = [
        normal(*shape)
        for channels in (1, 1, 4, 4)  # two layers of two directions, K=2
        for shape in ((6, channels, 1, 3), (6, 2, 1, 3), (6,), (6,))
    ]

    def function(input, hx, *params):
        return functional.conv_gru(
            input,
            hx,
            params,
            num_layers=2,
            bidirectional=True,
            lengths=torch.tensor([1, 2]),
            variant=variant,
            recompute=True,
        )

    tensors = (normal(2, 2, 1, 1, 2), normal(4, 2, 2, 1, 2), *params)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_arguments_that_share_a_tensor(backend, variant):
    """One tensor for both weights and one for both biases: its gradient, and its second one, are the sums."""

    def function(x, weight, bias):
        output, _ = functional.conv_gru(x, None, [weight, weight, bias, bias], variant=variant)
        return output

    sample = Sample("shared", T=2, N=1, C=2, K=2, H=2, W=2)
    x, _, weight, _, bias, *_ = sample.arguments(torch.float64, requires_grad=True)
    assert gradcheck(function, (x, weight, bias))
    assert gradgradcheck(function, (x, weight, bias), fast_mode=True)


def test_only_what_is_asked_for_is_differentiated_twice():
    """Gradient penalties ask for the input's gradient and differentiate it by the parameters."""
    sample = Sample("penalty", **TINY, hx=True)
    results = []
    for name in ("cpu", "eager"):
        input, hx, *parameters = sample.arguments(torch.float64)[:6]
        input.requires_grad_()
        parameters[1].requires_grad_()  # weight_hh
        args = (input, hx, *parameters, None, None, "gru-rcn", False)
        output = BACKENDS[name].conv_gru(*args, save_gates=True)
        (gradient,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), parameters[1])
        results.append({"weight_hh": second})
    assert_gradients_close(*results)
