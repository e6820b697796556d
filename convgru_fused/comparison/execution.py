"""The runs of a comparison, several at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import monotonic, perf_counter

import torch

from convgru_fused import use_backend
from convgru_fused.bench.timing import synchronize
from convgru_fused.training.engine import (
    CHECKPOINT,
    RECORD,
    Result,
    Run,
    batches_of,
    in_channels_last,
    optimizer_of,
    take_step,
    train,
)

from .document import FusedTimes

_TIMED_STEPS, _WARM_UP_STEPS = 12, 2


def folder_of(run: Run, out: Path) -> Path:
    """Where a run is kept."""
    return out / "runs" / run.name


def recorded(run: Run, out: Path) -> Result | None:
    """The result of a run if it is there.

    Raises ValueError naming the file if it is the record of another run.
    """
    file = folder_of(run, out) / RECORD
    if not file.exists():
        return None
    result = Result.load(file)
    if different := differences(result.run, run):
        raise ValueError(
            f"{file}: expected the record of this plan's run, got one with another {different[0]}"
        )
    return result


def differences(a: Run, b: Run) -> list[str]:
    """The fields in which runs differ; a file has no tuples, so neither matter here."""
    first, second = (json.loads(json.dumps(asdict(run))) for run in (a, b))
    return [name for name, value in first.items() if second[name] != value]


def execute(
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    device: str,
    threads: int,
    seconds: float | None = None,
    on_result: Callable[[Run, Result], None] = lambda run, result: None,
) -> dict[str, str]:
    """Trains and tests, and leaves the records in `out`.

    Args:
        runs: the first ones first.
        out: where the runs are kept; see `folder_of`.
        jobs: how many at a time, each in a process of its own.
        device: for all of them.
        threads: of each process.
        seconds: after so many no further run is begun.
        on_result: called after each.

    Raises RuntimeError if one of the processes was killed.

    Returns what went wrong: the message of every run that failed, by its name.
    """
    failed: dict[str, str] = {}
    began = monotonic()
    waiting = iter(runs)
    # A forked process has neither its parent's threads nor its CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads,)) as pool:
        working: dict[Future[Result], Run] = {}
        try:
            while True:
                while len(working) < jobs and (seconds is None or monotonic() - began < seconds):
                    run = next(waiting, None)
                    if run is None:
                        break
                    working[pool.submit(_train, run, folder_of(run, out), device)] = run
                if not working:
                    return failed
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    run = working.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    if error is not None:
                        failed[run.name] = f"{type(error).__name__}: {error}"
                    else:
                        on_result(run, future.result())
        except BrokenProcessPool as error:
            raise RuntimeError("a process was killed") from error
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()
            raise


def _begin(threads: int) -> None:
    """In every process, which ends with its parent however that ends."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(run: Run, folder: Path, device: str) -> Result:
    result = train(run, folder, device=device)
    (folder / CHECKPOINT).unlink()
    return result


def time_fused(run: Run, device: str) -> FusedTimes:
    """Training steps of a run with the fused layers and with the eager ones, in turns and from the same
    weights, on the same clips."""
    steps, where = _WARM_UP_STEPS + _TIMED_STEPS, torch.device(device)
    models = [in_channels_last(run.model().to(where).train()) for _ in range(2)]
    optimizers = [optimizer_of(run, model) for model in models]
    seconds: list[list[float]] = [[], []]
    difference = 0.0
    for step, (item, label) in enumerate(batches_of(run.items(steps * run.batch_size), 0, run)):
        losses = []
        for index, backend in enumerate((None, "eager")):
            synchronize(where)
            began = perf_counter()
            with use_backend(backend) if backend else nullcontext():
                loss = take_step(run, step, models[index], optimizers[index], item, label, where)
            losses.append(loss.item())
            seconds[index].append(perf_counter() - began)
        difference = max(difference, abs(losses[0] - losses[1]) / abs(losses[1]))
    fused, eager = (statistics.median(times[_WARM_UP_STEPS:]) for times in seconds)
    return FusedTimes(
        run.task, run.batch_size, torch.get_num_threads(), _TIMED_STEPS, fused, eager, difference
    )
