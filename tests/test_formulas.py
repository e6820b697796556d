"""The eager backend is what everything is compared with; here it is compared with the formulas as published.

The formulas are written once more, without a thought for speed: six convolutions a step, one sample at a
time, backwards by turning the list of steps round, a short sample by cutting it.
"""

from functools import partial
from itertools import combinations

import pytest
import torch
from torch.nn.functional import conv2d

from convgru_fused import eager
from convgru_fused.testing import (
    TOLERANCES,
    assert_close_to_reference,
    assert_gradients_close,
    autograd_gradients,
    measure,
    reference,
    sample_inputs,
)


def ballas(x, h, W, U, b_i, b_h, g):
    """GRU-RCN, Ballas et al. 2016, equations 7 to 10, with biases and an additive term g for each gate."""
    (W_r, W_z, W_n), (U_r, U_z, U_n), (g_r, g_z, g_n) = W, U, g
    z = torch.sigmoid(conv(x, W_z, b_i[1]) + conv(h, U_z, b_h[1]) + g_z)
    r = torch.sigmoid(conv(x, W_r, b_i[0]) + conv(h, U_r, b_h[0]) + g_r)
    candidate = torch.tanh(conv(x, W_n, b_i[2]) + conv(r * h, U_n, b_h[2]) + g_n)
    return (1 - z) * h + z * candidate


def dgmr(x, h, W, U, b_i, b_h, g):
    """The ConvGRU of Ravuri et al. 2021 (DGMR): convolutions of [x,h], a relu, and z and 1-z exchanged."""
    xh = torch.cat([x, h], dim=1) if W[0] is not None else h
    both = [torch.cat([w, u], dim=1) if w is not None else u for w, u in zip(W, U, strict=True)]
    read, update, output = (
        partial(conv, weight=w, bias=add(i, j)) for w, i, j in zip(both, b_i, b_h, strict=True)
    )
    read_gate = torch.sigmoid(read(xh) + g[0])
    update_gate = torch.sigmoid(-update(xh) - g[1])
    gated = torch.cat([x, read_gate * h], dim=1) if W[0] is not None else read_gate * h
    c = torch.relu(output(gated) + g[2])
    return update_gate * h + (1 - update_gate) * c


def add(b, c):
    return b if c is None else c if b is None else b + c


def cudnn(x, h, W, U, b_i, b_h, g):
    """The equations in the documentation of torch.nn.GRU, with convolutions for products with matrices."""
    (W_ir, W_iz, W_in), (W_hr, W_hz, W_hn), (g_r, g_z, g_n) = W, U, g
    r = torch.sigmoid(conv(x, W_ir, b_i[0]) + conv(h, W_hr, b_h[0]) + g_r)
    z = torch.sigmoid(conv(x, W_iz, b_i[1]) + conv(h, W_hz, b_h[1]) + g_z)
    n = torch.tanh(conv(x, W_in, b_i[2]) + r * conv(h, W_hn, b_h[2]) + g_n)
    return (1 - z) * n + z * h


STEPS = {"gru-rcn": ballas, "gru-rcn-relu": dgmr, "cudnn": cudnn}


def conv(x, weight, bias):
    """weight None: this convolution is left out."""
    return 0 if weight is None else conv2d(x, weight, bias, padding="same")


def naive_conv_gru(input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias, lengths, variant, reverse):
    """The arguments and the result of `eager.conv_gru`."""
    nothing = (None, None, None)
    W = nothing if weight_ih is None else weight_ih.chunk(3)
    b_i = nothing if bias_ih is None else bias_ih.chunk(3)
    b_h = nothing if bias_hh is None else bias_hh.chunk(3)
    T, N = (gate_bias if input is None else input).shape[:2]
    K = weight_hh.size(1)
    images = [t for t in (input, hx, gate_bias) if t is not None]
    H, W_ = max(t.size(-2) for t in images), max(t.size(-1) for t in images)
    samples = []
    for i in range(N):
        h = images[0].new_zeros(1, K, H, W_) if hx is None else hx[i : i + 1]
        length = T if lengths is None else int(lengths[i])
        steps = list(range(length))[:: -1 if reverse else 1]
        states = {}
        for t in steps:
            x = None if input is None else input[t, i : i + 1]
            g = (0, 0, 0) if gate_bias is None else gate_bias[t, i : i + 1].chunk(3, dim=1)
            states[t] = h = STEPS[variant](x, h, W, weight_hh.chunk(3), b_i, b_h, g)
        past_the_end = torch.zeros_like(h)
        samples.append(torch.stack([states.get(t, past_the_end) for t in range(T)]))
    return torch.cat(samples, dim=1)


@pytest.mark.parametrize("sample", list(sample_inputs(variants=eager.VARIANTS)), ids=str)
def test_eager_is_the_published_formula(sample):
    expected_output, expected_gradients = reference(sample, torch.float64)
    args = sample.arguments(torch.float64, requires_grad=True)
    output = naive_conv_gru(*args)
    assert_close_to_reference(output, expected_output)
    if sample.lengths == (0, 0):
        assert not output.any()  # and it has no graph to compare gradients of
        return
    grad_output = sample.grad_output(torch.float64)
    wanted = [arg for arg in args[:7] if arg is not None]
    gradients = iter(torch.autograd.grad(output, wanted, grad_output))
    gradients = eager.Gradients(*(None if arg is None else next(gradients) for arg in args[:7]))
    assert_gradients_close(gradients, expected_gradients)


@pytest.mark.parametrize("sample", list(sample_inputs(variants=eager.VARIANTS)), ids=str)
def test_backward_by_hand_is_that_of_autograd(sample):
    _, expected = reference(sample, torch.float64)
    args = sample.arguments(torch.float64)
    assert_gradients_close(eager.conv_gru_backward(sample.grad_output(torch.float64), *args), expected)


@pytest.mark.parametrize(("variant", "other"), list(combinations(eager.VARIANTS, 2)))
def test_variants_differ(variant, other):
    """So that no test passes because a variant is ignored."""
    sample = next(sample_inputs(lambda s: s.name == f"plain-{variant}", eager.VARIANTS))
    args = sample.arguments(torch.float64)
    difference = measure(eager.conv_gru(*args[:8], other, False), eager.conv_gru(*args))
    assert {"elementwise", "relative_l2", "cosine"} <= set(
        difference.exceeded(TOLERANCES[torch.bfloat16, "output"])
    )


def test_autograd_gradients_are_none_where_none_is_asked_for():
    sample = next(sample_inputs(lambda s: s.name == "gate-bias-gru-rcn"))
    args = sample.arguments(torch.float64, requires_grad=True)
    args[2].requires_grad_(False)
    gradients = autograd_gradients(eager.conv_gru(*args), args, sample.grad_output(torch.float64))
    assert gradients.weight_ih is None
    assert gradients.input is not None and gradients.gate_bias is not None
