"""From a job's weights to modules: for a "seq" workload a list of one layer, for a "loop" the cells of a
step."""

from __future__ import annotations

from collections.abc import Callable

from .peers import EagerCell, GRULayer, NaiveCell, Peer, TunedCell, TunedLayer, TunedLinearLayer, Unrolled
from .program import Job
from .workloads import CellWeights


def _from_cell(job: Job, cell: Callable[[CellWeights], Peer]) -> list[Peer]:
    cells = [cell(weights) for weights in job.sets[0].weights]
    return [Unrolled(cells[0])] if job.workload.form == "seq" else cells


def is_dense(job: Job) -> bool:
    """Whether the convolutions are matrix products: 1x1 kernel, 1x1 pixels, whole sequence."""
    workload = job.workload
    image = (workload.height, workload.width)
    return workload.form == "seq" and image == (1, 1) and workload.kernels == ((1, 1),)


def naive(job: Job) -> list[Peer]:
    return _from_cell(job, lambda weights: NaiveCell(weights, job.variant))


def eager(job: Job) -> list[Peer]:
    return _from_cell(job, lambda weights: EagerCell(weights, job.variant))


def concatenated(job: Job) -> list[Peer]:
    """`eager` in channels last with elementwise work in place."""
    return _from_cell(job, lambda weights: EagerCell(weights, job.variant, channels_last=True))


def tuned(job: Job) -> list[Peer]:
    if job.workload.form == "loop":
        return [TunedCell(weights, job.variant) for weights in job.sets[0].weights]
    layer = TunedLinearLayer if is_dense(job) else TunedLayer
    return [layer(job.sets[0].weights[0], job.variant)]


def nn_gru(job: Job) -> list[Peer]:
    return [GRULayer(job.sets[0].weights[0])]
