"""The peers under torch.compile. Shapes are static, inference is frozen, a GPU gets max-autotune."""

from __future__ import annotations

import contextlib
from time import perf_counter
from typing import Any

import torch
from torch import nn

from . import formulations
from .peers import Peer, TunedLayer, Unrolled
from .program import Job, Program, run_cells, run_layer
from .timing import best_of

WHOLE_SEQUENCE_LIMIT = 32
"""Longer sequences are compiled step by step: a loop that the compiler unrolls costs compile time in
proportion to T, minutes already at T = 128."""


def build(job: Job) -> Program:
    """`tuned` and `eager`, compiled; the faster of them that works. Raises RuntimeError if neither does."""
    torch._dynamo.reset()  # earlier workloads count towards dynamo's limit of recompilations
    programs, failures = [], []
    for name, make in (("tuned", formulations.tuned), ("eager", formulations.eager)):
        try:
            programs.append(_compile(job, name, make(job)))
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    if not programs:
        raise RuntimeError("; ".join(failures))
    return min(programs, key=lambda program: best_of(program, job.device))


def _compile(job: Job, name: str, peers: list[Peer]) -> Program:
    on_gpu, is_loop = job.device.type == "cuda", job.workload.form == "loop"
    layer = peers[0]
    is_long = job.workload.steps > WHOLE_SEQUENCE_LIMIT and isinstance(layer, (TunedLayer, Unrolled))
    by_step = is_loop or is_long
    # A step that is called T times before its backward does not suit the compiler's own CUDA graphs.
    mode = "max-autotune-no-cudagraphs" if by_step else "max-autotune"

    def compiled(module: nn.Module) -> Any:
        return torch.compile(module, dynamic=False, mode=mode if on_gpu else None)

    if is_loop:
        run = run_cells([compiled(peer) for peer in peers])
    elif by_step and isinstance(layer, (TunedLayer, Unrolled)):
        layer.step = compiled(layer.step)
        run = run_layer(layer)
    else:
        run = run_layer(compiled(layer))
    program = Program(
        job,
        peers,
        run,
        detail=f"{name}, {'step' if by_step else 'sequence'}",
        traceable=False,
        before_call=torch.compiler.cudagraph_mark_step_begin if on_gpu and not by_step else None,
    )
    program.activate()
    freezing = job.mode == "forward"
    start = perf_counter()
    with torch._inductor.config.patch(freezing=True) if freezing else contextlib.nullcontext():
        program()  # compiles
    program.compile_seconds = perf_counter() - start
    return program
