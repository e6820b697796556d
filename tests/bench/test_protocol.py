"""That what is measured is what is said: settings, who runs, limits, what a report adds up."""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from bench_samples import LOOP, SEQUENCE, job, record
from test_command import SMALL, bench, parsed
from test_measure import FAST, SETTINGS, Recorder
from test_reports import text_of

from convgru_fused import functional, numerics
from convgru_fused.backends import selected
from convgru_fused.bench import formulations, models, plan, report, suite, timing, video_report
from convgru_fused.bench.check import Error, Referee, summed_terms
from convgru_fused.bench.contenders import our_contenders
from convgru_fused.bench.measure import Settings, measure_workload, prepared
from convgru_fused.bench.program import Program
from convgru_fused.bench.results import FAILED, WRONG
from convgru_fused.bench.timing import Protocol, best_of, interleaved


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_worse_round_trip_is_kept(monkeypatch):
    trips = iter([5.0, 7.0, 9.0, 8.0])
    monkeypatch.setattr(timing, "round_trip_ns", lambda device: next(trips))
    rows = list(measure_workload(SEQUENCE, SETTINGS, SETTINGS.contenders()))
    assert [{r.round_trip_ns for r in records} for records in rows] == [{7.0}, {9.0}]


def test_the_process_is_as_the_settings_want_it(monkeypatch):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv

    def state():
        return torch.get_num_threads(), matmul.fp32_precision, conv.fp32_precision, numerics.setting()

    before = state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tf32 = Settings(device=torch.device("cuda"), tf32=True)
    with prepared(tf32, threads=2):
        assert state() == (2, "tf32", "tf32", "fast")
        with prepared(Settings(precision="strict")):
            assert state() == (2, "ieee", "ieee", "strict")
        assert state() == (2, "tf32", "tf32", "fast")
    assert state() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_limits_are_what_is_said(dtype):
    asked = job(SEQUENCE, dtype=dtype)
    referee = Referee(asked, ("train",))
    assert all(tensor.dtype == torch.float64 for tensor in referee.reference.values())
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}[dtype]
    judged = referee.judge(Program(asked, formulations.eager(asked)))
    assert len(referee.yardstick) == len(judged) == 7
    for name, error in judged.items():
        yardstick = referee.yardstick[name]
        floor = 2 * unit + summed_terms(SEQUENCE, name, 2) ** 0.5 * min(unit, 2.0**-24)
        assert error.rms_limit == pytest.approx(max(8 * yardstick.rms, floor))
        assert error.largest_limit == pytest.approx(max(16 * yardstick.largest, 16 * floor))


def test_both_errors_have_to_be_within_their_limits():
    for error in (Error(0.5, 2.0, 1.0, 1.0), Error(2.0, 0.5, 1.0, 1.0)):
        assert not error.ok and error.severity == 2
    assert Error(0.5, 0.25, 1.0, 1.0).ok and Error(0.5, 0.25, 1.0, 1.0).severity == 0.5


def test_the_best_of_a_few_calls(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert best_of(timing.Plain(lambda: None), torch.device("cpu")) == 1.0


def test_rounds_go_on_until_every_contender_has_enough(monkeypatch):
    monkeypatch.setattr(timing, "_cpu_turn", lambda program, calls, expected: [program.seconds])

    class Takes(Recorder):
        def __init__(self, seconds):
            super().__init__("", [])
            self.seconds = seconds

    protocol = Protocol(repetitions=6, seconds=2.0, minimum=1, rounds=1)
    spreads = interleaved({"slow": Takes(1.0), "quick": Takes(0.1)}, torch.device("cpu"), protocol)
    assert [spread.repetitions for spread in spreads.values()] == [6, 6]


def test_nothing_is_collected_while_it_is_timed():
    seen = []
    interleaved({"a": timing.Plain(lambda: seen.append(gc.isenabled()))}, torch.device("cpu"), FAST)
    assert not any(seen[2:]) and gc.isenabled()  # after the estimate


def seeing(seen, run, leaves):
    seen.append(torch.is_inference_mode_enabled())
    return run(leaves)


def test_forward_is_in_inference_mode():
    for mode in ("forward", "train"):
        asked, seen = job(SEQUENCE, mode), []
        program = Program(asked, formulations.eager(asked))
        program._run = partial(seeing, seen, program._run)
        program()
        assert seen == [mode == "forward"]


@pytest.mark.parametrize("part", ["rows", "lengths", "models"])
@pytest.mark.parametrize("status", [WRONG, FAILED])
@pytest.mark.parametrize("who", ["fused", "eager"])
def test_exit_status(monkeypatch, part, status, who):
    bad = replace(record(who, None, "tiny"), status=status, note="off")

    def execute(plan, document, say, advance):
        setattr(document, part, [bad])
        document.add_workload(SEQUENCE, 2, 4)

    monkeypatch.setattr(suite, "execute", execute)
    monkeypatch.setattr(suite.machine, "ceilings", lambda *args: {"gflops": 1.0, "gbytes_per_s": 1.0})
    assert bench(*SMALL) == (1 if who == "fused" else 0)


def test_precision_is_the_one_that_is_set():
    with numerics.precision("strict"):
        assert parsed("--video", "none").settings.precision == "strict"
        assert parsed("--video", "none", "--precision", "fast").settings.precision == "fast"


def test_the_video_has_few_contenders(monkeypatch):
    monkeypatch.setattr(plan, "read_clips", lambda *args: None)
    made = parsed("--recompute", "--suite", "full", "--video", "any")
    assert made.settings.recompute and "compiled" in made.settings.peers
    assert not made.video_settings.recompute and made.video_settings.peers in (("eager",), ("naive", "eager"))


@pytest.mark.parametrize("workload", [SEQUENCE, LOOP], ids=lambda w: w.name)
def test_ours_runs_on_the_backend_of_its_name(workload, monkeypatch):
    seen = []
    run = functional._run
    monkeypatch.setattr(
        functional, "_run", lambda *args: (seen.append((args[0].name, selected())), run(*args))[1]
    )
    for contender in our_contenders(("cpu", "eager"), recompute=True):
        seen.clear()
        contender.build(job(workload))()
        name = contender.name.partition("[")[2].partition("]")[0]
        assert set(seen) == {(name, name)}


def test_recompute_keeps_less_in_a_loop_too():
    plain, recompute = (c.build(job(LOOP)).kept_bytes() for c in our_contenders((), recompute=True))
    assert recompute < plain


def test_errors_of_a_model_are_of_the_last_flow_and_of_the_gradients():
    class Ran:
        def __init__(self, last, gradient):
            self.flows, self.last = [], torch.full((2, 3), last)
            self.gradient = lambda: torch.tensor(gradient)

        def __call__(self):
            self.flows = [torch.zeros(2, 3), self.last]

    programs = {models.FUSED: Ran(1.0, [3.0, 4.0]), models.ORIGINAL: Ran(0.5, [3.0, 5.0])}
    errors = models._errors(programs, "train", "fast")
    assert errors["flow"].largest == errors["flow"].rms == 0.5
    assert errors["gradients"].largest == pytest.approx(1 / 34**0.5)
    assert not errors["flow"].ok and not errors["gradients"].ok


def test_totals_of_a_video(document):
    document.add_workload(replace(SEQUENCE, name="video_pool3"), 1, 4)
    document.video.rows += [record("fused", 0.030, "video_pool3"), record("eager", 0.075, "video_pool3")]
    text = text_of(video_report.show, document.video, document.workloads)
    assert re.search(r"all five\s+forward\s+40\.0\s+100\s+2\.50x", text)
    assert "frames per second, forward: fused 250.0, eager 100.0" in text
    document.video.rows[-2] = replace(document.video.rows[-2], status=WRONG, median=None)
    text = text_of(video_report.show, document.video, document.workloads)
    assert re.search(r"all five\s+forward\s+100\s", text)
    assert "frames per second, forward: eager 100.0" in text


def test_columns_of_the_report(document):
    text = text_of(report.show, document)
    assert re.search(r"sequence\s+forward\s.*\s0\.50\s+3\.00x\s+2\.00x\s+tuned", text)


def test_recompute_has_no_business_at_inference():
    recompute = our_contenders((), recompute=True)[1]
    assert "inference" in recompute.inapplicable(job(SEQUENCE, "forward"))
    assert not recompute.inapplicable(job(SEQUENCE, "train"))
