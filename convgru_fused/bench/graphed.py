"""Modules captured in CUDA graphs, forward and backward: what is left when no time goes into launching
kernels.

Every set of data gets graphs of its own that read it in place, so that no input is copied; a loop gets one
graph for each step, because the real model computes something between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .peers import Peer
from .program import Job, Leaves, Program, Run, make_leaves, run_layer

_WARM_UP = 3


class _Step(nn.Module):
    """The cells of one step as one module, so that they become one graph."""

    def __init__(self, cells: Sequence[nn.Module]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        for cell in self.cells:
            h = cell(x, h)
        return h


def build(job: Job, peers: Sequence[Peer]) -> Program:
    """Captures the graphs of these peers; needs CUDA."""
    leaves = make_leaves(job)
    torch.backends.cudnn.benchmark = True  # before anything is captured
    is_loop = job.workload.form == "loop"
    if job.mode == "forward":
        runs = [(_capture_loop if is_loop else _capture_layer)(peers, s) for s in leaves]
    else:
        runs = [(_graphed_loop if is_loop else _graphed_layer)(peers, s) for s in leaves]
    return Program(job, peers, lambda s: runs[s.index](s), leaves=leaves, traceable=False)


def _capture_layer(peers: Sequence[nn.Module], leaves: Leaves) -> Run:
    graph, states = _capture(peers[0], leaves.x[0], leaves.hx)

    def run(_: Leaves) -> tuple[Tensor]:
        graph.replay()
        return (states,)

    return run


def _capture_loop(peers: Sequence[nn.Module], leaves: Leaves) -> Run:
    graphs, states, h = [], [], leaves.hx
    for x in leaves.x:
        graph, h = _capture(_Step(peers), x, h)
        graphs.append(graph)
        states.append(h)

    def run(_: Leaves) -> list[Tensor]:
        for graph in graphs:
            graph.replay()
        return states

    return run


@torch.inference_mode()
def _capture(module: nn.Module, x: Tensor, h: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph that reads x and h where they are, and the tensor it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            module(x, h)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = module(x, h)
    graph.replay()  # a capture computes nothing, and the next step's warm-up reads this result
    return graph, result


def _graphed_layer(peers: Sequence[nn.Module], leaves: Leaves) -> Run:
    # It replaces the forward of what it is given: of this wrapper, so that sets of data can share the layer.
    layer: Any = torch.cuda.make_graphed_callables(
        _Step(peers), (leaves.x[0], leaves.hx), num_warmup_iters=_WARM_UP
    )
    return run_layer(layer)


def _graphed_loop(peers: Sequence[nn.Module], leaves: Leaves) -> Run:
    # All steps run before the first backward, so each needs buffers, and thus a graph, of its own.
    states = [leaves.hx, *(torch.zeros_like(leaves.hx).requires_grad_() for _ in leaves.x[1:])]
    steps: Any = torch.cuda.make_graphed_callables(
        tuple(_Step(peers) for _ in leaves.x),
        tuple(zip(leaves.x, states, strict=True)),
        num_warmup_iters=_WARM_UP,
    )

    def run(s: Leaves) -> list[Tensor]:
        h, found = s.hx, []
        for step, x in zip(steps, s.x, strict=True):
            h = step(x, h)
            found.append(h)
        return found

    return run
