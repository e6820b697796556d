"""The workloads under pytest-benchmark, with the contenders and the check of `python -m convgru_fused bench`,
on the CPU: pytest benchmarks --rows tiny,raft_sep --contenders fused,eager,compiled
--benchmark-group-by=group
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from convgru_fused.bench.check import Referee, worst
from convgru_fused.bench.contenders import PEERS, our_contenders
from convgru_fused.bench.measure import Settings, data_sets
from convgru_fused.bench.program import Job
from convgru_fused.bench.workloads import MODES, WORKLOADS


@pytest.fixture(scope="module")
def judged(row: str, variant: str) -> tuple[Job, Referee]:
    """The data of a row and who judges results on it, for both modes."""
    workload = WORKLOADS[row]
    job = Job(workload, "train", variant, data_sets(workload, Settings()))
    return job, Referee(job, MODES)


def test_workload(
    judged: tuple[Job, Referee], row: str, mode: str, contender: str, benchmark: BenchmarkFixture
) -> None:
    job, referee = judged
    job = replace(job, mode=mode)
    runner = PEERS.get(contender) or our_contenders(())[0]
    if runner.inapplicable(job):
        pytest.skip(runner.inapplicable(job))
    program = runner.build(job)
    name, error = worst(referee.judge(program))
    assert error.ok, f"{name}: {error}"

    benchmark.group = f"{row} {mode}"
    benchmark.extra_info.update(detail=program.detail, kept_bytes=program.kept_bytes())
    program.activate()
    benchmark.pedantic(program, setup=program.step, rounds=10, warmup_rounds=2)
    program.release()
    if benchmark.stats is not None:  # there are none with --benchmark-disable
        flops = job.workload.flops(mode, job.sets[0].x.size(1))
        benchmark.extra_info["gflops"] = flops / benchmark.stats.stats.median / 1e9
