"""The ConvGRU in plain PyTorch: the truth that every other backend is compared with.

`conv_gru` is the recurrence as the equations are written, differentiated by autograd; it runs on every
device, in every dtype, under every transform. `conv_gru_backward` is the same gradient derived by hand, step
by step: what the native backward passes compute, in a form that can be read next to them.

Shapes, here and everywhere below: T time steps, N batch, C input channels, K hidden channels, HxW pixels, kh
x kw kernel. Gates are stacked r|z|n along the channel axis. One layer, one direction.

    gru-rcn        r, z = sigmoid(a_r + U_r*h), sigmoid(a_z + U_z*h)     n = tanh(a_n + U_n*(r.h) + b_hn)
                   h'   = (1-z).h + z.n                                  Ballas et al. 2016, section 3
    gru-rcn-relu   the same with relu in the place of tanh               Ravuri et al. 2021 (DGMR)
    cudnn          r, z as above     n = tanh(a_n + r.(U_n*h + b_hn))    h' = (1-z).n + z.h, as torch.nn.GRU

with a = W*x + b_ih + gate_bias (all three gates; b_h of r and z likewise), `*` the zero-padded "same"
convolution and `.` the elementwise product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

VARIANTS = ("gru-rcn", "gru-rcn-relu", "cudnn")


class Gradients(NamedTuple):
    """Gradients of one layer, in the order of the arguments of `conv_gru`; None where the argument was
    None."""

    input: Tensor | None  # (T,N,C,H,W)
    hx: Tensor | None  # (N,K,H,W)
    weight_ih: Tensor | None  # (3K,C,kh,kw)
    weight_hh: Tensor | None  # (3K,K,kh,kw)
    bias_ih: Tensor | None  # (3K,)
    bias_hh: Tensor | None  # (3K,)
    gate_bias: Tensor | None  # the shape of gate_bias


def same_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Zero-padded convolution that keeps the image size. x (B,I,H,W), weight (O,I,kh,kw) -> (B,O,H,W)."""
    return F.conv2d(x, weight, bias, padding=(weight.size(2) // 2, weight.size(3) // 2))


def input_gates(
    input: Tensor | None, weight_ih: Tensor | None, bias_ih: Tensor | None, gate_bias: Tensor | None
) -> Tensor:
    """What the three gates receive from outside the recurrence, for all steps at once: (T,N,3K,H,W).

    Without an input, `gate_bias` stands for the whole term and may be (T,N,3K,1,1).
    """
    if input is None:
        assert gate_bias is not None
        return gate_bias
    assert weight_ih is not None
    a = same_conv(input.flatten(0, 1), weight_ih, bias_ih).unflatten(0, input.shape[:2])
    return a if gate_bias is None else a + gate_bias


def step(a: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, variant: str) -> Tensor:
    """One time step. a (N,3K,H,W) or (N,3K,1,1), h (N,K,H,W) -> (N,K,H,W)."""
    K = h.size(1)
    a_rz, a_n = a.split((2 * K, K), dim=1)
    if variant != "cudnn":
        U_rz, U_n = weight_hh.split((2 * K, K))
        b_rz, b_n = (None, None) if bias_hh is None else bias_hh.split((2 * K, K))
        r, z = torch.sigmoid(a_rz + same_conv(h, U_rz, b_rz)).chunk(2, dim=1)
        activation = torch.relu if variant == "gru-rcn-relu" else torch.tanh
        n = activation(a_n + same_conv(r * h, U_n, b_n))
        return (1 - z) * h + z * n
    c_rz, c_n = same_conv(h, weight_hh, bias_hh).split((2 * K, K), dim=1)
    r, z = torch.sigmoid(a_rz + c_rz).chunk(2, dim=1)
    n = torch.tanh(a_n + r * c_n)
    return (1 - z) * n + z * h


def time_steps(T: int, reverse: bool) -> range:
    """The time steps in the order in which the recurrence visits them."""
    return range(T - 1, -1, -1) if reverse else range(T)


def conv_gru(
    input: Tensor | None,
    hx: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    gate_bias: Tensor | None,
    lengths: Tensor | None,
    variant: str,
    reverse: bool,
) -> Tensor:
    """The states of all time steps, (T,N,K,H,W); zero at steps past a sample's length, where its state stands
    still.

    input (T,N,C,H,W); hx (N,K,H,W), None is zeros; weight_ih (3K,C,kh,kw); weight_hh (3K,K,kh,kw); biases
    (3K,); gate_bias (T,N,3K,H,W) or (T,N,3K,1,1), added to the pre-activations, or instead of W*x + b_ih when
    input is None; lengths (N,) integers in 0..T. With reverse, time runs backwards from each sample's last
    valid step.
    """
    a = input_gates(input, weight_ih, bias_ih, gate_bias)
    h = initial_state(a, weight_hh) if hx is None else hx
    outputs: list[Tensor] = [h] * a.size(0)
    for t in time_steps(a.size(0), reverse):
        h_next = step(a[t], h, weight_hh, bias_hh, variant)
        if lengths is None:
            h = outputs[t] = h_next
        else:
            valid = (lengths > t).view(-1, 1, 1, 1)
            h = torch.where(valid, h_next, h)
            outputs[t] = torch.where(valid, h_next, 0)
    return torch.stack(outputs) if outputs else a[:, :, : h.size(1)] * h  # (0,N,K,H,W), and part of the graph


def initial_state(a: Tensor, weight_hh: Tensor) -> Tensor:
    """The zero state, (N,K,H,W), that belongs to input gates a (T,N,3K,H,W)."""
    return a.new_zeros(a.size(1), weight_hh.size(1), a.size(3), a.size(4))


def conv_gru_backward(
    grad_output: Tensor,
    input: Tensor | None,
    hx: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    gate_bias: Tensor | None,
    lengths: Tensor | None,
    variant: str,
    reverse: bool,
) -> Gradients:
    """The gradients of `conv_gru` for grad_output (T,N,K,H,W), by hand; arguments and their shapes as there.

    The reverse pass carries grad_h alone and leaves the pre-activation gradients d = [d_r, d_z, d_n] of every
    step in one buffer; the weight, input and bias gradients are then one batched computation over all T:

        gru-rcn   d_n = grad_h.z.(1-n^2)         d_z = grad_h.(n-h).z.(1-z)      g = U_n^T*d_n
                  d_r = g.h.r.(1-r)              grad_h <- grad_h.(1-z) + g.r + U_rz^T*[d_r,d_z]
                  with relu d_n = grad_h.z where n > 0, else 0
        cudnn     d_n = grad_h.(1-z).(1-n^2)     d_z = grad_h.(h-n).z.(1-z)      d_q = d_n.r, q = U_n*h + b_hn
                  d_r = d_n.q.r.(1-r)            grad_h <- grad_h.z + U^T*[d_r,d_z,d_q]
    """
    K = weight_hh.size(1)
    padding = (weight_hh.size(2) // 2, weight_hh.size(3) // 2)
    a = input_gates(input, weight_ih, bias_ih, gate_bias)
    h0 = initial_state(a, weight_hh) if hx is None else hx
    T = a.size(0)
    U_rz, U_n = weight_hh.split((2 * K, K))

    # Forward again, keeping what the reverse pass reads.
    h, previous, gates = h0, [h0] * T, [(h0, h0, h0, h0)] * T
    for t in time_steps(T, reverse):
        c = same_conv(h, weight_hh, bias_hh)
        r, z = torch.sigmoid(a[t, :, : 2 * K] + c[:, : 2 * K]).chunk(2, dim=1)
        q = c[:, 2 * K :]
        if variant != "cudnn":
            b_n = None if bias_hh is None else bias_hh[2 * K :]
            a_n = a[t, :, 2 * K :] + same_conv(r * h, U_n, b_n)
            n = torch.relu(a_n) if variant == "gru-rcn-relu" else torch.tanh(a_n)
            h_next = (1 - z) * h + z * n
        else:
            n = torch.tanh(a[t, :, 2 * K :] + r * q)
            h_next = (1 - z) * n + z * h
        previous[t], gates[t] = h, (r, z, n, q)
        h = h_next if lengths is None else torch.where((lengths > t).view(-1, 1, 1, 1), h_next, h)

    # Reverse pass.
    grad_h = torch.zeros_like(h0)
    d = grad_output.new_zeros(T, h0.size(0), 3 * K, *h0.shape[2:])
    d_hidden = torch.zeros_like(
        d
    )  # what the hidden convolutions' outputs receive: d_q instead of d_n in "cudnn"
    for t in reversed(time_steps(T, reverse)):
        h, (r, z, n, q) = previous[t], gates[t]
        valid = grad_h.new_ones(()) if lengths is None else (lengths > t).view(-1, 1, 1, 1).to(grad_h.dtype)
        dh = (grad_h + grad_output[t]) * valid
        if variant != "cudnn":
            d_n = torch.where(n > 0, dh * z, 0) if variant == "gru-rcn-relu" else dh * z * (1 - n * n)
            d_z = dh * (n - h) * z * (1 - z)
            g = conv2d_input(h.shape, U_n, d_n, padding=padding)
            d_r = g * h * r * (1 - r)
            d_rz = torch.cat((d_r, d_z), dim=1)
            to_previous = dh * (1 - z) + g * r + conv2d_input(h.shape, U_rz, d_rz, padding=padding)
            d_hidden[t] = torch.cat((d_rz, d_n), dim=1)
        else:
            d_n = dh * (1 - z) * (1 - n * n)
            d_z = dh * (h - n) * z * (1 - z)
            d_r = d_n * q * r * (1 - r)
            d_rz = torch.cat((d_r, d_z), dim=1)
            d_hidden[t] = torch.cat((d_rz, d_n * r), dim=1)
            to_previous = dh * z + conv2d_input(h.shape, weight_hh, d_hidden[t], padding=padding)
        d[t] = torch.cat((d_rz, d_n), dim=1)
        grad_h = to_previous + grad_h * (1 - valid)

    # Everything else, batched over time.
    grad_input = grad_weight_ih = grad_gate_bias = None
    if input is not None:
        assert weight_ih is not None
        x, d_flat = input.flatten(0, 1), d.flatten(0, 1)
        grad_input = conv2d_input(x.shape, weight_ih, d_flat, padding=padding).view_as(input)
        grad_weight_ih = conv2d_weight(x, weight_ih.shape, d_flat, padding=padding)
    if gate_bias is not None:
        grad_gate_bias = d.sum_to_size(gate_bias.shape)
    h_all = torch.stack(previous).flatten(0, 1)
    if variant != "cudnn":
        rh_all = torch.stack([gates[t][0] * previous[t] for t in range(T)]).flatten(0, 1)
        d_rz, d_n = d_hidden.flatten(0, 1).split((2 * K, K), dim=1)
        grad_weight_hh = torch.cat(
            (
                conv2d_weight(h_all, U_rz.shape, d_rz, padding=padding),
                conv2d_weight(rh_all, U_n.shape, d_n, padding=padding),
            )
        )
    else:
        grad_weight_hh = conv2d_weight(h_all, weight_hh.shape, d_hidden.flatten(0, 1), padding=padding)
    return Gradients(
        input=grad_input,
        hx=None if hx is None else grad_h,
        weight_ih=grad_weight_ih,
        weight_hh=grad_weight_hh,
        bias_ih=None if bias_ih is None or input is None else d.sum((0, 1, 3, 4)),
        bias_hh=None if bias_hh is None else d_hidden.sum((0, 1, 3, 4)),
        gate_bias=grad_gate_bias,
    )
