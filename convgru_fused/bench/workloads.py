"""The recurrent layers of models that people run: sizes, work, traffic, and random data of their shapes.

Shapes: T time steps, N batch, C input channels, K hidden channels, HxW pixels, kh x kw kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("forward", "train")


class CellWeights(NamedTuple):
    """The parameters of one cell in the package's layout, gates stacked r|z|n along dim 0."""

    weight_ih: Tensor  # (3K,C,kh,kw)
    weight_hh: Tensor  # (3K,K,kh,kw)
    bias_ih: Tensor  # (3K,)
    bias_hh: Tensor  # (3K,)


@dataclass(frozen=True)
class Inputs:
    """One set of data: everything that a run reads."""

    x: Tensor  # (T,N,C,H,W)
    hx: Tensor  # (N,K,H,W)
    grad_output: Tensor  # (T,N,K,H,W): what the training mode sends back into the states
    weights: tuple[CellWeights, ...]  # one for each cell of a step

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers, rounded to another dtype."""
        weights = tuple(CellWeights(*(tensor.to(dtype) for tensor in cell)) for cell in self.weights)
        return Inputs(self.x.to(dtype), self.hx.to(dtype), self.grad_output.to(dtype), weights)


@dataclass(frozen=True)
class Workload:
    """One recurrent layer (form "seq": the whole sequence is known) or one cell in a loop (form "loop": in
    the real model the input of a step depends on the state, so nothing may be computed ahead of it)."""

    name: str
    source: str
    form: str
    steps: int  # T
    batch_cpu: int  # N on a CPU
    batch_gpu: int  # N on a GPU
    input_size: int  # C
    hidden_size: int  # K
    height: int  # H
    width: int  # W
    kernels: tuple[tuple[int, int], ...] = ((3, 3),)  # of the cells of one step, one after the other

    def batch(self, device_type: str) -> int:
        """N on a device of that type."""
        return self.batch_cpu if device_type == "cpu" else self.batch_gpu

    def parameter_shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """For each cell of a step, the shape of each of its parameters."""
        C, K = self.input_size, self.hidden_size
        return tuple(
            {
                "weight_ih": (3 * K, C, *k),
                "weight_hh": (3 * K, K, *k),
                "bias_ih": (3 * K,),
                "bias_hh": (3 * K,),
            }
            for k in self.kernels
        )

    def flops(self, mode: str, batch: int) -> int:
        """Floating-point operations of the convolutions, as a direct convolution would do them (a
        multiply-add is two).

        Forward: W*x and U*h of three gates in every cell. Train: three times that, since each convolution's
        backward is two of the same size. Elementwise work, some hundred times less, is left out.
        """
        pixels = self.steps * batch * self.height * self.width
        taps = sum(kh * kw for kh, kw in self.kernels)
        forward = 2 * pixels * taps * 3 * self.hidden_size * (self.input_size + self.hidden_size)
        return forward if _checked(mode) == "forward" else 3 * forward

    def bytes_floor(self, mode: str, batch: int, itemsize: int) -> int:
        """Bytes that must cross the memory bus however clever the code: each operand once a pass.

        Forward reads x, hx and the parameters and writes the states. The backward of train reads x, the
        states, their gradient and the parameters, and writes the gradients of x, hx and the parameters.
        """
        pixels = batch * self.height * self.width
        x = self.steps * pixels * self.input_size
        states = self.steps * pixels * self.hidden_size
        hx = pixels * self.hidden_size
        parameters = sum(math.prod(shape) for cell in self.parameter_shapes() for shape in cell.values())
        forward = x + hx + parameters + states
        backward = (x + hx + 2 * states + parameters) + (x + hx + parameters)
        return itemsize * (forward if _checked(mode) == "forward" else forward + backward)

    def make_inputs(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Inputs:
        """Random data of this workload's shapes, the same numbers on every device.

        x and grad_output are standard normal. Weights are normal with the variance that keeps the
        pre-activations near 1 (zeros or tiny numbers would flatter the multipliers' power limit and hide
        wrong results); hx is the tanh of a normal, as a state is.
        """
        device = torch.device(device)
        T, N, C, K = self.steps, self.batch(device.type), self.input_size, self.hidden_size
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator).mul_(scale).to(device, dtype)

        weights = tuple(
            CellWeights(
                normal(3 * K, C, kh, kw, scale=1 / math.sqrt(C * kh * kw)),
                normal(3 * K, K, kh, kw, scale=1 / math.sqrt(K * kh * kw)),
                normal(3 * K, scale=0.1),
                normal(3 * K, scale=0.1),
            )
            for kh, kw in self.kernels
        )
        image = (self.height, self.width)
        return Inputs(
            x=normal(T, N, C, *image),
            hx=normal(N, K, *image).tanh(),
            grad_output=normal(T, N, K, *image),
            weights=weights,
        )


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


_ROWS = (
    # name, model, form, T, N on a CPU, N on a GPU, C, K, H, W (and kernels unless 3x3)
    ("gru_rcn_pool2", "GRU-RCN on pool2, Ballas et al. 2016", "seq", 10, 1, 64, 128, 64, 56, 56),
    ("gru_rcn_pool3", "GRU-RCN on pool3", "seq", 10, 4, 64, 256, 128, 28, 28),
    ("gru_rcn_pool4", "GRU-RCN on pool4", "seq", 10, 4, 64, 512, 256, 14, 14),
    ("gru_rcn_pool5", "GRU-RCN on pool5", "seq", 10, 4, 64, 512, 256, 7, 7),
    ("gru_rcn_fc7", "GRU-RCN on fc7", "seq", 10, 4, 64, 4096, 512, 1, 1, ((1, 1),)),
    ("gru_rcn_stream", "GRU-RCN on pool4, one clip at a time", "seq", 10, 1, 1, 512, 256, 14, 14),
    ("raft_sep", "RAFT, SepConvGRU at 440x1024", "loop", 12, 1, 1, 256, 128, 55, 128, ((1, 5), (5, 1))),
    ("droid_update", "DROID-SLAM, update", "loop", 8, 1, 16, 320, 128, 48, 64),
    ("matting_hd", "RobustVideoMatting, finest scale", "loop", 16, 1, 1, 16, 16, 135, 240),
    ("matting_coarse", "RobustVideoMatting, bottleneck", "loop", 16, 1, 1, 64, 64, 17, 30),
    ("nowcast_fine", "precipitation encoder-forecaster, first scale", "seq", 10, 1, 8, 64, 64, 96, 96),
    ("dgmr_top", "DGMR sampler, top level", "seq", 18, 1, 8, 96, 48, 64, 64),
    ("long_small", "event camera or world model", "seq", 128, 1, 8, 32, 32, 32, 32),
    ("tiny", "latency floor", "seq", 16, 1, 1, 16, 16, 16, 16),
)

WORKLOADS: dict[str, Workload] = {row[0]: Workload(*row) for row in _ROWS}
"""Every workload by name."""

MODELS: dict[str, str] = {"raft_e2e": "RAFT large of torchvision, 440x1024, 12 updates of the flow"}
"""Whole models, to be measured as they are and fused; what each is."""

QUICK = ("gru_rcn_fc7", "matting_coarse", "long_small", "tiny")
"""A row of each kind that a small CPU finishes in a minute: 1x1, loop, long, tiny; large maps come from the
video."""

LENGTHS_WORKLOAD = "long_small"
LENGTHS = {"quick": (16, 32, 64, 128), "full": (16, 32, 64, 128, 256, 512)}
"""The T at which the cost against T is measured, by suite."""


def select(names: Sequence[str]) -> tuple[Workload, ...]:
    """The workloads of these names, in this order. Raises ValueError naming the valid ones."""
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"unknown workload {name!r}: expected one of {', '.join((*WORKLOADS, *MODELS))}")
    return tuple(WORKLOADS[name] for name in names)
