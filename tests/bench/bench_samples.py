"""Small workloads and made-up records for the tests of the benchmark."""

from __future__ import annotations

from dataclasses import replace

from convgru_fused.bench.check import Error
from convgru_fused.bench.program import Job
from convgru_fused.bench.results import OK, Record
from convgru_fused.bench.workloads import Workload

SEQUENCE = Workload("sequence", "made up", "seq", 3, 2, 2, 5, 4, 6, 7)
DENSE = Workload("dense", "made up", "seq", 4, 3, 3, 6, 5, 1, 1, ((1, 1),))
LOOP = Workload("loop", "made up", "loop", 3, 2, 2, 5, 4, 6, 7, ((1, 5), (5, 1)))


def job(workload: Workload, mode: str = "train", variant: str = "gru-rcn", **options: object) -> Job:
    return Job(workload, mode, variant, (workload.make_inputs(**options),))


def record(
    contender: str, seconds: float | None, workload: str = "sequence", mode: str = "forward"
) -> Record:
    """A timed record with a spread of 10 % to either side; untimed without seconds."""
    found = Record(workload, mode, contender, contender.startswith("fused"), OK)
    if seconds is None:
        return found
    return replace(
        found,
        median=seconds,
        p20=0.9 * seconds,
        p80=1.1 * seconds,
        repetitions=5,
        ms_per_step=seconds * 1e3 / 3,
        gflops=1e-9 * SEQUENCE.flops(mode, 2) / seconds,
        kept_bytes=1000 if contender.startswith("fused") else 2000,
        errors={"output": Error(1e-6, 1e-7, 1e-5, 1e-6)},
    )
