"""Compiles the Triton kernels of workloads, each in a process of its own, so that a benchmark after it finds
them on disk: python benchmarks/gpu_warm.py DTYPE PROCESSES ROW[,ROW]"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from convgru_fused.bench import ours, program, workloads


def warm(dtype: str, name: str) -> None:
    """One image and a few steps: kernels depend on neither number."""
    workload = workloads.WORKLOADS[name]
    workload = replace(workload, batch_gpu=1, steps=min(workload.steps, 3))
    data = workload.make_inputs("cuda", getattr(torch, dtype))
    for mode in workloads.MODES:
        ours.build(program.Job(workload, mode, "gru-rcn", (data,)), "triton", recompute=False)()
    torch.cuda.synchronize()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(int(sys.argv[2]), mp_context=context) as pool:
        for _ in pool.map(partial(warm, sys.argv[1]), sys.argv[3].split(",")):
            pass
