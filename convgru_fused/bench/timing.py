"""Clocks and the interleaved repetitions.

On a CPU the idle OpenMP threads of one contender spin for a while and slow the next one on few cores, so
every turn starts with a rest and one untimed call. On a GPU each call lies between two events of the stream.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol as Interface

import torch

from .stats import percentile

_REST_SECONDS = 0.010
_TURN_SECONDS = 0.1  # a turn makes about as many calls as fit into this, within the bounds below
_TURN_CALLS = (2, 10)
_EVENT_SECONDS = 0.5e-3  # shorter calls are timed several at once on a GPU: its events are coarse


class Timed(Interface):
    """What a clock needs of a `Program`."""

    def __call__(self) -> None: ...
    def activate(self) -> None: ...
    def step(self) -> None: ...
    def release(self) -> None: ...


class Untended:
    """A `Timed` that needs nothing done around its calls."""

    def activate(self) -> None: ...
    def step(self) -> None: ...
    def release(self) -> None: ...


@dataclass(frozen=True)
class Plain(Untended):
    """A function as a `Timed`."""

    function: Callable[[], object]

    def __call__(self) -> None:
        self.function()


@dataclass(frozen=True)
class Protocol:
    """How often: at least `repetitions` timed calls of each contender, or `seconds` spent in them but then at
    least `minimum`, in at least `rounds` rounds of everybody's turns."""

    repetitions: int
    seconds: float
    minimum: int
    rounds: int

    def __post_init__(self) -> None:
        if self.repetitions < 1:
            raise ValueError(f"repetitions: expected at least 1, got {self.repetitions}")

    def satisfied(self, times: Sequence[float]) -> bool:
        return len(times) >= self.repetitions or (len(times) >= self.minimum and sum(times) >= self.seconds)


QUICK = Protocol(repetitions=6, seconds=0.6, minimum=3, rounds=2)
FULL = Protocol(repetitions=10, seconds=2.0, minimum=5, rounds=3)


@dataclass(frozen=True)
class Spread:
    """The distribution of one contender's times, in seconds."""

    median: float
    p20: float
    p80: float
    repetitions: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        return cls(percentile(times, 50), percentile(times, 20), percentile(times, 80), len(times))


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def round_trip_ns(device: torch.device) -> float | None:
    """How far apart the threads of a CPU are now, as the time in which a cache line goes from one to another
    and back. None on a GPU or with one thread."""
    if device.type == "cuda" or torch.get_num_threads() == 1:
        return None
    from .. import _build_info  # clocks work without the extension

    return _build_info.thread_round_trip()


def best_of(program: Timed, device: torch.device, calls: int = 3) -> float:
    """Seconds of the fastest of a few calls after a warm-up: good enough to choose between formulations."""
    program.activate()
    program()
    times = []
    for _ in range(calls):
        synchronize(device)
        start = time.perf_counter()
        program()
        synchronize(device)
        times.append(time.perf_counter() - start)
    program.release()
    return min(times)


def interleaved(
    programs: Mapping[str, Timed],
    device: torch.device,
    protocol: Protocol,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Spread]:
    """Times the programs in turns, A B C A B C, beginning each round one further on."""
    turn = _cuda_turn if device.type == "cuda" else _cpu_turn
    expected = {name: best_of(program, device, calls=1) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    rounds = 0
    with _no_garbage_collection():
        while names and (rounds < protocol.rounds or not all(protocol.satisfied(t) for t in times.values())):
            for name in names:
                low, high = _TURN_CALLS
                calls = min(max(math.ceil(_TURN_SECONDS / expected[name]), low), high)
                times[name] += turn(programs[name], calls, expected[name])
            names.append(names.pop(0))
            rounds += 1
            on_round()
    return {name: Spread.of(times[name]) for name in programs}


def _cpu_turn(program: Timed, calls: int, expected: float) -> list[float]:
    program.activate()
    time.sleep(_REST_SECONDS)
    program()
    times = []
    for _ in range(calls):
        program.step()
        start = time.perf_counter()
        program()
        times.append(time.perf_counter() - start)
    program.release()
    return times


def _cuda_turn(program: Timed, calls: int, expected: float) -> list[float]:
    inner = max(1, math.ceil(_EVENT_SECONDS / expected))
    program.activate()
    program()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)
    ]
    for start, end in events:
        program.step()
        start.record()
        for _ in range(inner):
            program()
        end.record()
    torch.cuda.synchronize()
    program.release()
    return [start.elapsed_time(end) * 1e-3 / inner for start, end in events]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
