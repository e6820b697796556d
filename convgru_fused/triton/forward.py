"""The states of a sequence, step by step, and the gates once more from the states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..eager import time_steps
from . import kernels
from .launch import Batch, Launcher, packed
from .layout import in_format, memory
from .problem import Problem, outside


@dataclass(frozen=True)
class Walk:
    """The order of the steps, and where each finds the state before it and leaves its own."""

    first: Tensor  # (.,N,H,W,K) where the state before the first step is
    state: Tensor  # (.,N,H,W,K) where the others are
    output: Tensor | None  # (T,N,H,W,K) with lengths: zero where a state stands still; None: as state
    steps: list[tuple[int, int, int]]  # t; of `first` or `state` that before it; of `state` its own

    @classmethod
    def of(cls, p: Problem, output: Tensor) -> Walk:
        T, N, K, H, W = p.sizes
        h0 = output.new_zeros(N, H, W, K) if p.hx is None else memory(p.hx)
        order = list(time_steps(T, p.reverse))
        if p.lengths is None:
            return cls(h0[None], output, None, list(zip(order, [0, *order[:-1]], order, strict=True)))
        # States have a place of their own: one that is overwritten, or two where neighbours are still read.
        places = 2 if p.cudnn else 1
        state = p.empty(places, N, H, W, K)
        state[0] = h0
        return cls(state, state, output, [(t, i % places, (i + 1) % places) for i, t in enumerate(order)])


def conv_gru(p: Problem, save_gates: bool) -> tuple[Tensor, Tensor]:
    """States (T,N,K,H,W) in the format of the images, and gates (T,N,H,W,3K) r|z|n, for "cudnn" (T,N,H,W,4K)
    r|z|n|q; without save_gates (0,)."""
    T, N, K, H, W = p.sizes
    output = p.empty(T, N, H, W, K)
    kept = (T, N, H, W, p.planes * K) if save_gates else (0,)
    if output.numel() == 0:
        return in_format(output, p.images), p.empty(*kept)
    gates = (_cudnn if p.cudnn else _gru_rcn)(p, Walk.of(p, output), save_gates)
    return in_format(output, p.images), gates.view(kept) if save_gates else p.empty(0)


def _gru_rcn(p: Problem, walk: Walk, save_gates: bool) -> Tensor:
    """Makes the states; returns the gates, if they are to be saved."""
    T, N, K, H, W = p.sizes
    w_ih, w_hh = p.weight_ih, p.weight_hh
    joined = T == 1 and p.input is not None and w_ih is not None and w_ih.shape[2:] == w_hh.shape[2:]
    a = outside(p, joined)
    gates = p.empty(T if save_gates else 1, N, H, W, 3 * K) if a.ours is None else a.ours
    rh = p.empty(N, H, W, K)
    x, C = None, 0
    weights_x: tuple[Tensor | None, Tensor | None] = (None, None)
    if joined:
        assert p.input is not None and w_ih is not None
        x, C = memory(p.valid(p.input)), p.input.size(2)
        weights_x = (packed(w_ih[: 2 * K]), packed(w_ih[2 * K :]))

    shared = {"x": x, **a.tensors, "gates": gates, "rh": rh, "h": walk.state}
    constants = {"C": C, "K": K, **a.constants, "KEEP": save_gates}
    of_candidate = {"state": walk.state, "output": walk.output, "lengths": p.lengths, "RELU": p.relu}

    def launchers(convolved: bool) -> list[Launcher]:
        options: Any = {"convolved": convolved or joined, "x_channels": C}
        U_rz, U_n = w_hh[: 2 * K], w_hh[2 * K :]
        first = {**shared, "weight_x": weights_x[0]}
        second = {**shared, **of_candidate, "weight_x": weights_x[1]}
        return [
            Launcher(kernels.reset_update_kernel, p.batch, U_rz, K, first, constants, **options),
            Launcher(kernels.candidate_kernel, p.batch, U_n, K, second, constants, **options),
        ]

    usual = launchers(p.hx is not None)
    h, pair = walk.first, [launch.on(h=walk.first) for launch in usual]
    for i, (t, t_h, t_next) in enumerate(walk.steps):
        if i == 1:
            h, pair = walk.state, usual if p.hx is not None else launchers(True)
        t_gates = t if gates.size(0) == T else 0
        pair[0](h[t_h], t=t, t_h=t_h, t_gates=t_gates)
        pair[1](rh, t=t, t_h=t_h, t_gates=t_gates, t_next=t_next)
    return gates


def _cudnn(p: Problem, walk: Walk, save_gates: bool) -> Tensor:
    """Makes the states; returns the gates, if they are to be saved."""
    T, N, K, H, W = p.sizes
    a = outside(p)
    gates = p.empty(T, N, H, W, 4 * K) if save_gates else None

    tensors = {
        "h": walk.state,
        **a.tensors,
        "bias_hn": p.bias_hn,
        "gates": gates,
        "state": walk.state,
        "output": walk.output,
        "lengths": p.lengths,
    }

    def launcher(convolved: bool) -> Launcher:
        kernel, constants = kernels.cudnn_step_kernel, {"K": K, **a.constants}
        return Launcher(kernel, p.batch, p.weight_hh, K, tensors, constants, convolved=convolved)

    usual = launcher(p.hx is not None)
    h, launch = walk.first, usual.on(h=walk.first)
    for i, (t, t_h, t_next) in enumerate(walk.steps):
        if i == 1:
            h, launch = walk.state, usual if p.hx is not None else launcher(True)
        launch(h[t_h], t=t, t_h=t_h, t_next=t_next)
    return p.empty(0) if gates is None else gates


def recomputed_gates(p: Problem, previous: Tensor) -> Tensor:
    """The gates of all steps from the states before them, (T,N,H,W,K), as images of one batch."""
    T, N, K, H, W = p.sizes
    every = Batch(T * N, H, W, p.fast)
    a = outside(p)
    h = previous.flatten(0, 1)
    nothing = {"state": None, "output": None, "lengths": None}
    steps = {"t": 0, "t_h": 0}
    constants = {"K": K, **a.constants}
    if p.cudnn:
        gates = p.empty(T, N, H, W, 4 * K)
        tensors = {"h": h, **a.tensors, "bias_hn": p.bias_hn, "gates": gates, **nothing}
        Launcher(kernels.cudnn_step_kernel, every, p.weight_hh, K, tensors, constants)(h, **steps, t_next=0)
        return gates
    gates = p.empty(T, N, H, W, 3 * K) if a.ours is None else a.ours
    rh = p.empty(T * N, H, W, K)
    tensors = {"x": None, "weight_x": None, **a.tensors, "gates": gates, "h": h, "rh": rh}
    constants = {**constants, "C": 0, "KEEP": True}
    first, second = p.weight_hh[: 2 * K], p.weight_hh[2 * K :]
    Launcher(kernels.reset_update_kernel, every, first, K, tensors, constants)(h, **steps, t_gates=0)
    tensors, constants = {**tensors, **nothing}, {**constants, "RELU": p.relu}
    Launcher(kernels.candidate_kernel, every, second, K, tensors, constants)(rh, **steps, t_gates=0, t_next=0)
    return gates.view(T, N, H, W, 3 * K)
