"""From a workload to records: data, reference, check of every contender, and then the times of those that are
right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..checks import check_device
from ..numerics import precision
from . import timing
from .check import Referee, worst
from .contenders import PEERS, Contender, our_contenders, select_peers
from .program import Job, Program
from .results import FAILED, NOT_APPLICABLE, OK, WRONG, Record
from .workloads import LENGTHS_WORKLOAD, MODES, WORKLOADS, Inputs, Workload

_MOST_SETS = 4

Say = Callable[[str], None]
"""Takes a line about what is being done now."""


@dataclass(frozen=True)
class Settings:
    """What to measure besides the workload. Raises ValueError or TypeError for what makes no sense."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    variant: str = "gru-rcn"
    modes: tuple[str, ...] = MODES
    peers: tuple[str, ...] = tuple(PEERS)
    backends: tuple[str, ...] = ()  # of ours; none is the library's own choice
    recompute: bool = False  # ours with recompute=True as well
    in_graphs: bool = False  # ours in CUDA graphs as well
    protocol: timing.Protocol = timing.QUICK
    tf32: bool = False
    precision: str = "fast"  # of ours, convgru_fused.precision
    seed: int = 0

    def __post_init__(self) -> None:
        check_device("device", self.device)
        if self.tf32 and (self.device.type != "cuda" or self.dtype != torch.float32):
            raise ValueError(f"tf32: expected float32 on a GPU, got {self.dtype} on {self.device.type}")
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise ValueError(f"mode: expected some of {', '.join(MODES)}, got {self.modes}")

    def contenders(self) -> tuple[Contender, ...]:
        """Ours first, then the peers. Raises ValueError for an unknown peer."""
        return our_contenders(self.backends, self.recompute, self.in_graphs) + select_peers(self.peers)


@contextmanager
def prepared(settings: Settings, threads: int | None = None) -> Iterator[None]:
    """The process as the settings want it, for the time of a benchmark: threads, TF32, precision; the old
    state comes back."""
    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        matmul.fp32_precision,
        conv.fp32_precision,
    )
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        matmul.fp32_precision = conv.fp32_precision = "tf32" if settings.tf32 else "ieee"
        with precision(settings.precision):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]
        matmul.fp32_precision, conv.fp32_precision = before[2:]


def data_sets(workload: Workload, settings: Settings) -> tuple[Inputs, ...]:
    """Random data. On a GPU several sets, so that calls that rotate over them find nothing in the L2 cache;
    small workloads stay there all the same, as they do inside a real model."""
    first = workload.make_inputs(settings.device, settings.dtype, settings.seed)
    if settings.device.type != "cuda":
        return (first,)
    size = sum(tensor.nbytes for tensor in (first.x, first.hx, first.grad_output))
    l2 = torch.cuda.get_device_properties(settings.device).L2_cache_size
    count = min(max(math.ceil(2 * l2 / size), 1), _MOST_SETS)
    others = (
        workload.make_inputs(settings.device, settings.dtype, settings.seed + i) for i in range(1, count)
    )
    return (first, *(replace(other, weights=first.weights) for other in others))


def measure_workload(
    workload: Workload,
    settings: Settings,
    contenders: tuple[Contender, ...],
    say: Say = lambda line: None,
    sets: tuple[Inputs, ...] | None = None,
) -> Iterator[list[Record]]:
    """Yields the records of all contenders, mode by mode. sets: data to use instead of random ones."""
    job = Job(workload, settings.modes[0], settings.variant, sets or data_sets(workload, settings))
    say(f"{workload.name}: float64 reference")
    try:
        referee = Referee(job, settings.modes, settings.tf32)
    except Exception as error:  # out of memory, or a dtype that plain PyTorch does not run here
        note = f"no reference: {first_line(error)}"
        for mode in settings.modes:
            yield [Record(workload.name, mode, c.name, c.is_ours, FAILED, note) for c in contenders]
        return
    for mode in settings.modes:
        yield measure_mode(replace(job, mode=mode), referee, contenders, settings.protocol, say)


def measure_mode(
    job: Job,
    referee: Referee,
    contenders: tuple[Contender, ...],
    protocol: timing.Protocol,
    say: Say = lambda line: None,
) -> list[Record]:
    """Checks every contender, then times those that passed, interleaved."""
    where = f"{job.workload.name} {job.mode}"
    programs: dict[str, Program] = {}
    records: dict[str, Record] = {}
    for contender in contenders:
        say(f"{where}: checking {contender.name}")
        record, program = check(job, referee, contender)
        records[contender.name] = record
        if program is not None:
            programs[contender.name] = program
    say(f"{where}: timing {', '.join(programs)}")
    before = timing.round_trip_ns(job.device)
    spreads = timing.interleaved(programs, job.device, protocol)
    after = timing.round_trip_ns(job.device)
    flops = job.workload.flops(job.mode, job.sets[0].x.size(1))
    for name, spread in spreads.items():
        records[name] = replace(
            timed(records[name], spread),
            ms_per_step=spread.median * 1e3 / job.workload.steps,
            gflops=flops / spread.median / 1e9,
            round_trip_ns=None if before is None or after is None else max(before, after),
        )
    return list(records.values())


def timed(record: Record, spread: timing.Spread) -> Record:
    """The record with these times."""
    return replace(
        record, median=spread.median, p20=spread.p20, p80=spread.p80, repetitions=spread.repetitions
    )


def check(job: Job, referee: Referee, contender: Contender) -> tuple[Record, Program | None]:
    """A record without times, and the program if its result is right."""
    record = Record(job.workload.name, job.mode, contender.name, contender.is_ours, OK)
    reason = contender.inapplicable(job)
    if reason:
        return replace(record, status=NOT_APPLICABLE, note=reason), None
    try:
        program = contender.build(job)
        errors = referee.judge(program)
        record = replace(
            record,
            detail=program.detail,
            compile_seconds=program.compile_seconds,
            errors=errors,
            kept_bytes=program.kept_bytes(),
            peak_bytes=program.peak_bytes(),
        )
    except Exception as error:  # of any kind: one contender's trouble must not end the others' benchmark
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
        return replace(record, status=FAILED, note=first_line(error)), None
    name, off = worst(errors)
    if not off.ok:
        note = (
            f"{name} is off the float64 reference by {off.largest:.1e} (allowed {off.largest_limit:.1e}), "
            f"rms {off.rms:.1e} (allowed {off.rms_limit:.1e})"
        )
        return replace(record, status=WRONG, note=note), None
    return record, program


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def at_length(steps: int) -> Workload:
    """The workload of the cost against T, with that T."""
    return replace(WORKLOADS[LENGTHS_WORKLOAD], name=f"{LENGTHS_WORKLOAD}[T={steps}]", steps=steps)
