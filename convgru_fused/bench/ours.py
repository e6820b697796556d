"""convgru_fused as its users call it: the module for a sequence, the cell for a loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

import convgru_fused
from convgru_fused import functional

from .peers import Peer, gradient
from .program import Job, Program
from .workloads import CellWeights


class _Ours(Peer):
    """Holds one of the package's modules with these weights, and the backend to run it on (None: its own
    choice)."""

    suffix = ""

    def __init__(
        self,
        module: convgru_fused.ConvGRU | convgru_fused.ConvGRUCell,
        weights: CellWeights,
        backend: str | None,
    ) -> None:
        super().__init__()
        self.module, self.variant, self.backend = module, module.variant, backend
        with torch.no_grad():
            for parameter, value in zip(self._weights(), weights, strict=True):
                parameter.copy_(value)

    def _weights(self) -> list[Tensor]:
        return [getattr(self.module, name + self.suffix) for name in CellWeights._fields]

    def _selected(self) -> AbstractContextManager[None]:
        return nullcontext() if self.backend is None else convgru_fused.use_backend(self.backend)

    def gradients(self) -> CellWeights:
        return CellWeights(*(gradient(parameter) for parameter in self._weights()))


class FusedLayer(_Ours):
    suffix = "_l0"

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with self._selected():
            return self.module(x, h[None])[0]


class FusedCell(_Ours):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with self._selected():
            return self.module(x, h)


class RecomputingCell(_Ours):
    """The cell as a function: only that has the option."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with self._selected():
            return functional.conv_gru_cell(x, h, *self._weights(), variant=self.variant, recompute=True)


def probe(backend: str, device: torch.device, dtype: torch.dtype, variant: str) -> None:
    """Runs a step of one pixel. Raises ValueError if the backend is not there or refuses such a problem."""
    cell = convgru_fused.ConvGRUCell(1, 1, 1, variant=variant, device=device, dtype=dtype)
    with convgru_fused.use_backend(backend):
        cell(torch.zeros(1, 1, 1, 1, device=device, dtype=dtype))


def build(job: Job, backend: str | None, recompute: bool) -> Program:
    """Raises what the package raises if the backend cannot run the job."""
    return Program(job, peers(job, backend, recompute))


def peers(job: Job, backend: str | None, recompute: bool) -> list[Peer]:
    """The layer, or the cells of a step."""
    sizes = (job.workload.input_size, job.workload.hidden_size)
    place = (job.device, job.dtype)
    found: list[Peer] = []
    for kernel, weights in zip(job.workload.kernels, job.sets[0].weights, strict=True):
        if job.workload.form == "seq":
            layer = convgru_fused.ConvGRU(*sizes, kernel, variant=job.variant, recompute=recompute).to(*place)
            found.append(FusedLayer(layer, weights, backend))
        else:
            cell = convgru_fused.ConvGRUCell(*sizes, kernel, variant=job.variant).to(*place)
            found.append((RecomputingCell if recompute else FusedCell)(cell, weights, backend))
    return found
