"""A convolution and what follows it, as a kernel that is launched for every time step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from . import tuning
from .layout import images_of, memory
from .tiles import Tile, candidates, choose, prefers_library


def packed(weight: Tensor) -> Tensor:
    """(O,I,kh,kw) as (kh*kw,I,O'), O' the next multiple of 8; the rest is zero."""
    out, in_ = weight.shape[:2]
    return F.pad(weight.permute(2, 3, 1, 0).reshape(-1, in_, out), (0, -out % 8)).contiguous()


@dataclass(frozen=True)
class Batch:
    """Images (N,H,W) that kernels work on, and the arithmetic."""

    N: int
    H: int
    W: int
    fast: bool


class Launcher:
    """A kernel with the convolution before its own work, launched again and again with arguments of which
    only integers and sums change: the second and later times without looking up what it was compiled to."""

    def __init__(
        self,
        kernel: Any,
        batch: Batch,
        weight: Tensor,
        stride: int,
        tensors: dict[str, Any],
        constants: dict[str, Any],
        *,
        convolved: bool = True,
        x_channels: int = 0,
    ) -> None:
        """weight (O,I,kh,kw): of images whose pixels are `stride` elements apart. convolved: else there is
        nothing to convolve. x_channels: of images that the kernel convolves besides."""
        out, in_, kh, kw = weight.shape
        gates = 3 if kernel.__name__ == "cudnn_step_kernel" else 1
        self.kernel, self.weight, self.padding = kernel, weight, (kh // 2, kw // 2)
        self.is_library = convolved and not x_channels and prefers_library(weight, batch.fast)
        if self.is_library:  # as cuDNN wants it, which would make a copy at every step
            self.weight = weight.contiguous(memory_format=torch.channels_last)
        taps = kh * kw if convolved and not self.is_library else 0
        # Without a convolution nothing is loaded by descriptors, and one channel forbids them.
        channels = (in_, stride, x_channels) if taps else (1,)
        self.batch, self.out = batch, out // gates
        self.tile = choose(kernel.__name__, weight, batch.H, batch.W, self.out, channels)
        self.key = (
            f"{kernel.__name__}, {weight.dtype}, {in_}+{x_channels}->{self.out}, {kh}x{kw}, "
            f"{batch.H}x{batch.W}, {'tf32' if batch.fast else 'ieee'}"
        )
        self.arguments: dict[str, Any] = {
            **tensors,
            "weight": torch.cat([packed(part) for part in weight.chunk(gates)], 2) if taps else None,
            "N": batch.N,
            "H": batch.H,
            "W": batch.W,
            **constants,
            "TAPS": taps,
            "KW": kw,
            "PRECISION": "tf32" if batch.fast else "ieee",
        }
        self.compiled: Any = None

    def on(self, **tensors: Tensor) -> Launcher:
        """The same with other tensors."""
        other = copy.copy(self)
        other.arguments = {**self.arguments, **tensors}
        other.compiled = None
        return other

    def __call__(self, images: Tensor, **steps: int) -> None:
        """images (N,H,W,.) are what is convolved, if PyTorch does it. steps: of the kernel's arguments."""
        if self.compiled is None:
            if tuning.enabled() and self.arguments["TAPS"]:
                self._tune(steps)
            self._prepare()
        arguments = {**self.arguments, **steps, "sums": self._sums(images)}
        if self.compiled is None:
            self.compiled = self.kernel[self.grid](**arguments, **self.options)
        else:
            self.compiled[self.grid](*(arguments[name] for name in self.kernel.arg_names))

    def _sums(self, images: Tensor) -> Tensor | None:
        if not self.is_library:
            return None
        return memory(F.conv2d(images_of(images), self.weight, padding=self.padding))

    def _prepare(self) -> None:
        tile, batch = self.tile, self.batch
        self.grid = (tile.count(batch.N, batch.H, batch.W, self.out), 1, 1)
        self.options = {"num_warps": tile.warps, "num_stages": tile.stages}
        self.arguments["TILE"] = tile.constexpr()
        if tile.descriptors and self.weight.is_cuda:
            # Kernels make descriptors, in memory that Triton asks for: as torch.compile does, of all of us.
            triton.set_allocator(_allocate)

    def _tune(self, steps: dict[str, int]) -> None:
        """Measures, if that is not done, what is the fastest tile, on copies of what the kernel writes."""
        copies = {n: t.clone() for n, t in self.arguments.items() if isinstance(t, Tensor)}

        def seconds(tile: Tile) -> float:
            trial = self.on(**copies)
            trial.tile = tile
            trial._prepare()
            arguments = {**trial.arguments, **steps, "sums": None}
            try:
                return measured(lambda: trial.kernel[trial.grid](**arguments, **trial.options))
            except (OutOfResources, CompilationError, RuntimeError):
                return math.inf

        device = torch.cuda.get_device_name(self.weight.device) if self.weight.is_cuda else "interpreter"
        key = f"{device}, triton {triton.__version__}, {self.key}"
        batch = self.batch
        self.tile = tuning.best(key, candidates(self.tile, batch.H, batch.W, self.out), seconds)


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def measured(call: Callable[[], object]) -> float:
    """Seconds of a call on the GPU."""
    return 1e-3 * triton.testing.do_bench(call, warmup=5, rep=20)
