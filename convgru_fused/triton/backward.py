"""The gradients of a sequence: the recurrence backwards, then everything else for all steps at once, by
PyTorch's own convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..eager import time_steps
from . import kernels, launch
from .forward import recomputed_gates
from .launch import Launcher
from .layout import images_of, in_format, memory
from .problem import Problem, expect


def transposed(weight: Tensor) -> Tensor:
    """The weight of the gradient by the images."""
    return weight.flip(2, 3).transpose(0, 1)


def previous_states(p: Problem, output: Tensor) -> Tensor:
    """(T,N,H,W,K): the state before each step. At steps past a sample's length it is whatever it is."""
    T, N, K, H, W = p.sizes
    h0 = output.new_zeros(N, H, W, K) if p.hx is None else memory(p.hx)
    states = memory(output)
    if not p.reverse:
        return torch.cat((h0[None], states[:-1]))
    previous = torch.cat((states[1:], h0[None]))
    if p.lengths is None:
        return previous
    starts = torch.arange(T, device=output.device)[:, None] == p.lengths - 1
    return torch.where(starts.view(T, N, 1, 1, 1), h0, previous)


@dataclass(frozen=True)
class Buffers:
    """What the recurrence backwards reads and writes, (T,N,H,W,.)."""

    grad_output: Tensor  # K
    gates: Tensor
    previous: Tensor  # K: the states before the steps
    d: Tensor  # 3K r|z|n out: the gradients of the pre-activations
    hidden: Tensor  # 3K out: those of U*h + b, r|z|q; for others than "cudnn" d itself
    rh: Tensor | None  # K out: r.h, if it is wanted
    # 2K and K out, where PyTorch convolves: of d r|z and n once more, since it would copy parts of d.
    dense_rz: Tensor | None
    dense_n: Tensor | None

    @property
    def d_rz(self) -> Tensor:
        """(T,N,H,W,2K), to be convolved."""
        return self.d[..., : self.d.size(-1) // 3 * 2] if self.dense_rz is None else self.dense_rz

    @property
    def d_n(self) -> Tensor:
        """(T,N,H,W,K), to be convolved."""
        return self.d[..., self.d.size(-1) // 3 * 2 :] if self.dense_n is None else self.dense_n


def conv_gru_backward(
    p: Problem, grad_output: Tensor, output: Tensor, gates: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """The gradients of input, hx, weight_ih, weight_hh, bias_ih, bias_hh and gate_bias that are wanted, None
    for the others; gates may be (0,), then they are computed again."""
    T, N, K, H, W = p.sizes
    for name, images in (("grad_output", grad_output), ("output", output)):
        expect(name, images, [(T, N, K, H, W)], p.weight_hh)
    expect("gates", gates, [(0,), (T, N, H, W, p.planes * K)], p.weight_hh)
    if output.numel() == 0:  # no output depends on anything
        tensors = (p.input, p.hx, p.weight_ih, p.weight_hh, p.bias_ih, p.bias_hh, p.gate_bias)
        pairs = zip(tensors, wanted, strict=True)
        return [torch.zeros_like(x) if keep and x is not None else None for x, keep in pairs]
    previous = previous_states(p, output)
    if gates.numel() == 0:
        gates = recomputed_gates(p, previous)
    gates = gates.contiguous()
    d = p.empty(T, N, H, W, 3 * K)
    hidden = p.empty(T, N, H, W, 3 * K) if p.cudnn else d
    rh = p.empty(T, N, H, W, K) if wanted[3] and not p.cudnn else None
    dense: tuple[Tensor | None, Tensor | None] = (None, None)
    if not p.cudnn and launch.prefers_library(p.weight_hh, p.fast):
        dense = p.empty(T, N, H, W, 2 * K), p.empty(T, N, H, W, K)
    buffers = Buffers(memory(grad_output), gates, previous, d, hidden, rh, *dense)
    carry = (_cudnn if p.cudnn else _gru_rcn)(p, buffers, wants_hx=wanted[1])

    # Everything else, for all steps at once.
    def convolution_gradients(d: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Any, Any]:
        padding = (weight.size(2) // 2, weight.size(3) // 2)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            images_of(d).flatten(0, 1),
            images_of(x).flatten(0, 1),
            weight,
            None,
            (1, 1),
            padding,
            (1, 1),
            False,
            (0, 0),
            1,
            [*mask, False],
        )
        return grad_x, grad_weight

    gradients: list[Tensor | None] = [None] * 7
    if wanted[0] or wanted[2]:
        assert p.input is not None and p.weight_ih is not None
        x = memory(p.valid(p.input))
        grad_x, gradients[2] = convolution_gradients(d, x, p.weight_ih, [wanted[0], wanted[2]])
        if wanted[0]:
            gradients[0] = in_format(memory(grad_x).view(x.shape), p.input)
    if wanted[1]:
        assert p.hx is not None
        gradients[1] = in_format(carry.to(p.hx.dtype), p.hx)
    if wanted[3]:
        parts = [(hidden, previous, p.weight_hh)]
        if rh is not None:
            parts = [
                (buffers.d_rz, previous, p.weight_hh[: 2 * K]),
                (buffers.d_n, rh, p.weight_hh[2 * K :]),
            ]
        gradients[3] = torch.cat([convolution_gradients(*part, [False, True])[1] for part in parts])
    if wanted[4]:
        gradients[4] = d.sum((0, 1, 2, 3))
    if wanted[5]:
        known = None if p.cudnn else gradients[4]
        gradients[5] = hidden.sum((0, 1, 2, 3)) if known is None else known.clone()
    if wanted[6]:
        assert p.gate_bias is not None
        full = p.gate_bias.shape[3:] == (H, W)
        gradients[6] = in_format(d if full else d.sum((2, 3), keepdim=True), p.gate_bias)
    return [g.contiguous() if g is not None and i in (2, 3) else g for i, g in enumerate(gradients)]


def _gru_rcn(p: Problem, b: Buffers, wants_hx: bool) -> Tensor:
    """Fills d, its dense parts and rh; returns the gradient of the initial state, if it is wanted."""
    T, N, K, H, W = p.sizes
    carry = torch.zeros(N, H, W, K, dtype=torch.float32, device=b.d.device)
    by_rz, by_n = (transposed(w) for w in (p.weight_hh[: 2 * K], p.weight_hh[2 * K :]))
    shared = {"gates": b.gates, "h": b.previous, "carry": carry, "d": b.d, "d_rz": b.dense_rz}

    def candidate(convolved: bool) -> Launcher:
        tensors = {"grad_output": b.grad_output, "lengths": p.lengths, "d_n": b.dense_n, **shared}
        constants = {"K": K, "RELU": p.relu}
        kernel = kernels.candidate_backward_kernel
        return Launcher(kernel, p.batch, by_rz, 3 * K, tensors, constants, convolved=convolved)

    def reset_update(convolved: bool) -> Launcher:
        kernel = kernels.reset_update_backward_kernel
        return Launcher(kernel, p.batch, by_n, 3 * K, {"rh": b.rh, **shared}, {"K": K}, convolved=convolved)

    steps = list(time_steps(T, p.reverse))[::-1]
    first, second = candidate(False), reset_update(True)
    t_next = 0
    for i, t in enumerate(steps):
        if i == 1:
            first = candidate(True)
        if i == T - 1 and p.hx is None:
            second = reset_update(False)  # before a zero state nothing flows further
        first(b.d_rz[t_next], t=t, t_next=t_next)
        second(b.d_n[t], t=t)
        t_next = t
    if wants_hx:
        add_convolution(p, b.d_rz[t_next], by_rz, carry)
    return carry


def _cudnn(p: Problem, b: Buffers, wants_hx: bool) -> Tensor:
    """Fills d and hidden; returns the gradient of the initial state, if it is wanted."""
    T, N, K, H, W = p.sizes
    carry = torch.zeros(N, H, W, K, dtype=torch.float32, device=b.d.device)
    by_all = transposed(p.weight_hh)
    tensors = {
        "grad_output": b.grad_output,
        "gates": b.gates,
        "h": b.previous,
        "carry": carry,
        "d": b.d,
        "hidden": b.hidden,
        "lengths": p.lengths,
    }

    def launcher(convolved: bool) -> Launcher:
        kernel = kernels.cudnn_step_backward_kernel
        return Launcher(kernel, p.batch, by_all, 3 * K, tensors, {"K": K}, convolved=convolved)

    launch, t_next = launcher(False), 0
    for i, t in enumerate(list(time_steps(T, p.reverse))[::-1]):
        if i == 1:
            launch = launcher(True)
        launch(b.hidden[t_next], t=t, t_next=t_next)
        t_next = t
    if wants_hx:
        add_convolution(p, b.hidden[t_next], by_all, carry)
    return carry


def add_convolution(p: Problem, images: Tensor, weight: Tensor, carry: Tensor) -> None:
    """carry (N,H,W,K) fp32 += the convolution of images (N,H,W,C), which may be part of more channels."""
    out, channels = weight.shape[:2]
    stride = images.stride(2)
    constants = {"C": channels, "STRIDE": stride, "K": out}
    add = Launcher(kernels.add_kernel, p.batch, weight, stride, {"images": images, "carry": carry}, constants)
    add(images)
