"""Everybody who takes part in a comparison, by name: the peers, and ours on the backends asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import compiled, formulations, graphed, ours
from .program import Job, Program
from .timing import best_of


def _always(job: Job) -> str:
    return ""


@dataclass(frozen=True)
class Contender:
    """One column of a comparison."""

    name: str
    description: str
    build: Callable[[Job], Program]
    is_ours: bool = False
    inapplicable: Callable[[Job], str] = _always  # why it has no business in this job, or ""


def _naive(job: Job) -> Program:
    return Program(job, formulations.naive(job), cudnn_benchmark=False)


def _eager(job: Job) -> Program:
    return Program(job, formulations.eager(job), cudnn_benchmark=False)


def _tuned(job: Job) -> Program:
    """Of a cell in a loop there are two good formulations, neither better everywhere: takes the faster
    here."""
    if job.workload.form == "seq":
        return Program(
            job, formulations.tuned(job), detail="linear" if formulations.is_dense(job) else "hoisted"
        )
    return min(
        Program(job, formulations.tuned(job), detail="split"),
        Program(job, formulations.concatenated(job), detail="concatenated"),
        key=lambda program: best_of(program, job.device),
    )


def _graphed(job: Job) -> Program:
    return graphed.build(job, formulations.tuned(job))


def _nn_gru(job: Job) -> Program:
    return Program(job, formulations.nn_gru(job))


def _no_graphs(job: Job) -> str:
    return "" if job.device.type == "cuda" else f"CUDA graphs need a GPU, the device is {job.device.type}"


def _not_a_gru(job: Job) -> str:
    if not formulations.is_dense(job):
        return "torch.nn.GRU has no convolution"
    return "" if job.variant == "cudnn" else f'torch.nn.GRU is variant "cudnn", asked for {job.variant!r}'


PEERS: dict[str, Contender] = {
    peer.name: peer
    for peer in (
        Contender("naive", "six convolutions a step, the paper's formulas word for word", _naive),
        Contender("eager", "concatenate, joint gate convolution, candidate convolution", _eager),
        Contender("tuned", "input convolution hoisted over time, joint gates, channels last", _tuned),
        Contender("compiled", "tuned or eager under torch.compile, the faster", compiled.build),
        Contender("graphed", "tuned in CUDA graphs, forward and backward", _graphed, inapplicable=_no_graphs),
        Contender("nn_gru", "torch.nn.GRU, where it is the same function", _nn_gru, inapplicable=_not_a_gru),
    )
}
"""The peers, from the simplest to the strongest."""

QUICK_PEERS = ("naive", "eager", "tuned")


def our_contenders(
    backends: Sequence[str], recompute: bool = False, in_graphs: bool = False
) -> tuple[Contender, ...]:
    """Ours on each of these backends ("fused[cpu]", ...; just "fused" for one or for the library's own
    choice), each with recompute=True as well ("+recompute") and in CUDA graphs ("+graphs") if asked for."""
    found = []
    for backend in backends or (None,):
        name = f"fused[{backend}]" if len(backends) > 1 else "fused"
        what = f"convgru_fused on {'the backend it chooses' if backend is None else f'backend {backend!r}'}"
        found.append(
            Contender(name, what, partial(ours.build, backend=backend, recompute=False), is_ours=True)
        )
        if recompute:
            build = partial(ours.build, backend=backend, recompute=True)
            found.append(
                Contender(f"{name}+recompute", f"{what}, recompute=True", build, True, _only_training)
            )
        if in_graphs:
            build = partial(_ours_in_graphs, backend=backend)
            found.append(Contender(f"{name}+graphs", f"{what}, in CUDA graphs", build, True, _no_graphs))
    return tuple(found)


def _ours_in_graphs(job: Job, backend: str | None) -> Program:
    return graphed.build(job, ours.peers(job, backend, recompute=False))


def _only_training(job: Job) -> str:
    return "" if job.mode == "train" else "recompute changes nothing at inference"


def select_peers(names: Sequence[str]) -> tuple[Contender, ...]:
    """The peers of these names. Raises ValueError naming the valid ones."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: expected one of {', '.join(PEERS)}")
    return tuple(PEERS[name] for name in names)
