"""One contender set up for one workload, mode and data: the thing that is checked and then timed.

The harness owns the loop of "loop" workloads: it calls one step after the other from Python, as the real
model does, so no contender can look ahead. It also owns the backward, so that all contenders differentiate
the same sum of states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convgru_fused.kept import kept_bytes

from .peers import Peer, gradient
from .workloads import Inputs, Workload


@dataclass(frozen=True)
class Job:
    """What every contender of a comparison is asked to do."""

    workload: Workload
    mode: str  # "forward": inference mode; "train": forward, backward, all gradients
    variant: str
    sets: tuple[Inputs, ...]  # same weights; more than one only on a GPU, where calls rotate over them

    @property
    def device(self) -> torch.device:
        return self.sets[0].x.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sets[0].x.dtype


@dataclass
class Leaves:
    """One set of data as a program reads it, leaves of the graph in training. A "seq" workload has all steps
    in one tensor, so the tuples have one element; a "loop" has a tensor for each step."""

    index: int
    x: tuple[Tensor, ...]  # (T,N,C,H,W), or T times (N,C,H,W)
    hx: Tensor  # (N,K,H,W)
    grad_output: tuple[Tensor, ...]  # (T,N,K,H,W), or T times (N,K,H,W)

    def clear(self) -> None:
        """Forget the gradients of the last call."""
        for tensor in (self.hx, *self.x):
            tensor.grad = None


def make_leaves(job: Job) -> tuple[Leaves, ...]:
    """The job's data sets as leaves, without copying them."""
    train, is_loop = job.mode == "train", job.workload.form == "loop"

    def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.unbind() if is_loop else (tensor,)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(train)

    return tuple(
        Leaves(index, tuple(map(leaf, pieces(data.x))), leaf(data.hx), pieces(data.grad_output))
        for index, data in enumerate(job.sets)
    )


Run = Callable[[Leaves], Sequence[Tensor]]
"""Computes all states from a set of data, in the pieces in which `Leaves` has x."""


def run_layer(layer: Callable[[Tensor, Tensor], Tensor]) -> Run:
    """The whole sequence in one call."""
    return lambda leaves: (layer(leaves.x[0], leaves.hx),)


def run_cells(cells: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Run:
    """Step after step; the cells of a step one after the other, each seeing the step's x."""

    def run(leaves: Leaves) -> list[Tensor]:
        h, states = leaves.hx, []
        for x in leaves.x:
            for cell in cells:
                h = cell(x, h)
            states.append(h)
        return states

    return run


class Program:
    """Calling it does the timed unit of work once, on the next set of data.

    peers hold the parameters (one layer, or the cells of a step); run computes the states with them, by
    default by calling them. `traceable` says that autograd's saved tensors can be seen from outside.
    """

    def __init__(
        self,
        job: Job,
        peers: Sequence[Peer],
        run: Run | None = None,
        *,
        leaves: tuple[Leaves, ...] | None = None,
        detail: str = "",
        compile_seconds: float | None = None,
        cudnn_benchmark: bool = True,
        traceable: bool = True,
        before_call: Callable[[], None] | None = None,
    ) -> None:
        self.job = job
        self.peers = tuple(peers)
        self._parameters = [parameter for peer in self.peers for parameter in peer.parameters()]
        self.leaves = leaves or make_leaves(job)
        self.detail = detail
        self.compile_seconds = compile_seconds
        self.cudnn_benchmark = cudnn_benchmark
        self.traceable = traceable
        self._run = run or (run_layer(self.peers[0]) if job.workload.form == "seq" else run_cells(self.peers))
        self._before_call = before_call
        self._rotation = itertools.cycle(self.leaves)

    def __call__(self) -> None:
        self._execute(next(self._rotation))

    def _execute(self, leaves: Leaves) -> Sequence[Tensor]:
        if self._before_call is not None:
            self._before_call()
        if self.job.mode == "forward":
            with torch.inference_mode():
                return self._run(leaves)
        self._clear(leaves)
        states = self._run(leaves)
        torch.autograd.backward(states, leaves.grad_output)
        return states

    def _clear(self, leaves: Leaves) -> None:
        leaves.clear()
        for parameter in self._parameters:
            parameter.grad = None

    def activate(self) -> None:
        """Set the process up for this contender; called, untimed, before each of its turns."""
        torch.backends.cudnn.benchmark = self.cudnn_benchmark

    def step(self) -> None:
        """In training what an optimiser does between two calls: every weight changes, so nothing made ready
        from the weights of the last call serves the next. (By its sign: two steps and they are back.)"""
        if self.job.mode == "train":
            with torch.no_grad():
                for parameter in self._parameters:
                    parameter.neg_()

    def release(self) -> None:
        """Free the gradients of the last call; called, untimed, after each turn."""
        for leaves in self.leaves:
            self._clear(leaves)

    def results(self) -> dict[str, Tensor]:
        """Runs the first set of data once: the states, and in training every gradient, in the package's
        layout."""
        self.activate()
        leaves = self.leaves[0]
        found = {"output": self._whole(self._execute(leaves))}
        if self.job.mode == "train":
            found["grad_x"] = self._whole([gradient(x) for x in leaves.x])
            found["grad_hx"] = gradient(leaves.hx)
            for index, peer in enumerate(self.peers):
                suffix = f"[{index}]" if len(self.peers) > 1 else ""
                for name, found_gradient in peer.gradients()._asdict().items():
                    found[f"grad_{name}{suffix}"] = found_gradient
        found = {name: tensor.detach().clone() for name, tensor in found.items()}
        self.release()
        return found

    def _whole(self, pieces: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(pieces)) if self.job.workload.form == "loop" else pieces[0]

    def kept_bytes(self) -> int | None:
        """Bytes that autograd keeps alive between forward and backward: the storages of the tensors it saved,
        each counted once, without the caller's own: x, the initial state, parameters. None for inference, or
        if they cannot be seen from outside."""
        if self.job.mode != "train" or not self.traceable:
            return None
        leaves = self.leaves[0]
        return kept_bytes(lambda: self._run(leaves), without=(*self._parameters, *leaves.x, leaves.hx))

    def peak_bytes(self) -> int | None:
        """CUDA: the allocator's peak during one call, above what was there before it. None elsewhere."""
        if self.job.device.type != "cuda" or not self.traceable:
            return None
        self()
        self.release()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        self.release()
        return peak
