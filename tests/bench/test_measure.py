from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from bench_samples import LOOP, SEQUENCE, job

from convgru_fused.bench import formulations
from convgru_fused.bench.check import Error, Referee, relative_errors, summed_terms, worst
from convgru_fused.bench.contenders import PEERS, Contender, our_contenders, select_peers
from convgru_fused.bench.measure import Settings, at_length, data_sets, measure_workload, prepared
from convgru_fused.bench.program import Job, Program
from convgru_fused.bench.results import FAILED, NOT_APPLICABLE, OK, WRONG
from convgru_fused.bench.timing import Protocol, Spread, interleaved
from convgru_fused.bench.workloads import MODES

FAST = Protocol(repetitions=2, seconds=0.1, minimum=1, rounds=1)
SETTINGS = Settings(peers=("eager",), protocol=FAST)


def wrong_blend(asked: Job) -> Program:
    """h' = (1-z).n + z.h where (1-z).h + z.n was asked for."""
    return Program(asked, formulations.eager(replace(asked, variant="cudnn")))


def slightly_off(asked: Job) -> Program:
    """One weight of hundreds wrong by 1 %."""
    peers = formulations.eager(asked)
    with torch.no_grad():
        peers[0].step.gates.weight[0, 0, 0, 0] *= 1.01
    return Program(asked, peers)


def broken(asked: Job) -> Program:
    raise RuntimeError("does not even build\nand says so at length")


@pytest.mark.parametrize("build", [wrong_blend, slightly_off], ids=lambda f: f.__name__)
def test_a_wrong_contender_gets_no_time(build) -> None:
    runners = (Contender("planted", "", build), PEERS["eager"])
    for records in measure_workload(SEQUENCE, SETTINGS, runners):
        planted, eager = records
        assert planted.status == WRONG and planted.median is None and planted.gflops is None
        assert "is off the float64 reference by" in planted.note
        assert worst(planted.errors)[1].severity > 1
        assert eager.status == OK and eager.median > 0


def test_a_wrong_gradient_alone_is_enough() -> None:
    class DoublesGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.clone()

        @staticmethod
        def backward(ctx, grad):
            return 1.001 * grad

    def build(asked: Job) -> Program:
        program = Program(asked, formulations.eager(asked))
        run = program._run
        program._run = lambda leaves: [DoublesGradient.apply(states) for states in run(leaves)]
        return program

    statuses = [r[0].status for r in measure_workload(SEQUENCE, SETTINGS, (Contender("planted", "", build),))]
    assert statuses == [OK, WRONG]  # forward, train


def test_a_broken_contender_does_not_stop_the_others() -> None:
    runners = (Contender("broken", "", broken), PEERS["graphed"], PEERS["eager"])
    (records,) = measure_workload(SEQUENCE, replace(SETTINGS, modes=("forward",)), runners)
    assert [r.status for r in records] == [FAILED, NOT_APPLICABLE, OK]
    assert records[0].note == "RuntimeError: does not even build"


def test_without_a_reference_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulations, "naive", lambda asked: broken(asked))
    rows = list(measure_workload(SEQUENCE, SETTINGS, select_peers(("eager",))))
    assert [r.status for records in rows for r in records] == [FAILED, FAILED]
    assert rows[0][0].note == "no reference: RuntimeError: does not even build"


@pytest.mark.parametrize("workload", [SEQUENCE, LOOP], ids=lambda w: w.name)
def test_records(workload) -> None:
    lines: list[str] = []
    rows = list(measure_workload(workload, SETTINGS, SETTINGS.contenders(), lines.append))
    assert [[r.key for r in records] for records in rows] == [
        [(workload.name, mode, name) for name in ("fused", "eager")] for mode in ("forward", "train")
    ]
    for record in (r for records in rows for r in records):
        assert record.status == OK and 0 < record.p20 <= record.median <= record.p80
        assert record.repetitions >= 2
        assert record.ms_per_step == pytest.approx(record.median * 1e3 / 3)
        assert record.gflops == pytest.approx(workload.flops(record.mode, 2) / record.median / 1e9)
        assert (record.round_trip_ns is None) == (torch.get_num_threads() == 1)
        assert (record.kept_bytes is not None) == (record.mode == "train")
        assert record.peak_bytes is None and record.is_ours == (record.contender == "fused")
    assert any("float64 reference" in line for line in lines) and any("timing" in line for line in lines)


def test_relative_errors_by_hand() -> None:
    reference = torch.tensor([3.0, -4.0, 0.0, 0.0], dtype=torch.float64)  # rms 2.5
    largest, rms = relative_errors(torch.tensor([3.0, -4.0, 0.5, 0.0]), reference)
    assert (largest, rms) == (pytest.approx(0.2), pytest.approx(0.1))
    largest, _ = relative_errors(torch.tensor([3.0, -4.65, 0.0, 0.0]), reference)
    assert largest == pytest.approx(0.1)  # 0.65 of an element of 4, with the rms on top
    assert relative_errors(torch.tensor([3.0, -4.0, 0.0, math.nan]), reference) == (math.inf, math.inf)
    assert relative_errors(torch.zeros(3), reference) == (math.inf, math.inf)


def test_error_of_nan_is_refused() -> None:
    assert not Error(math.nan, 0.0, 1.0, 1.0).ok and Error(math.nan, 0.0, 1.0, 1.0).severity == math.inf


def test_summed_terms() -> None:
    assert summed_terms(SEQUENCE, "output", 2) == 9 * (5 + 4)
    assert summed_terms(SEQUENCE, "grad_x", 2) == 9 * (5 + 4) + 9 * 12
    assert summed_terms(LOOP, "grad_weight_ih[1]", 2) == 5 * (5 + 4) + 5 * 12 + 3 * 2 * 42
    assert summed_terms(LOOP, "grad_bias_hh[0]", 2) == summed_terms(LOOP, "grad_weight_ih[1]", 2)


def test_a_wrong_yardstick_judges_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = job(SEQUENCE)
    right, wrong = Program(asked, formulations.eager(asked)), wrong_blend(asked)
    monkeypatch.setattr(formulations, "eager", lambda job: wrong.peers)
    referee = Referee(asked, ("train",))
    assert "output" not in referee.yardstick
    assert not worst(referee.judge(wrong))[1].ok
    assert worst(referee.judge(right))[1].ok


class Recorder:
    """Stands in for a program; writes down what happens to it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __call__(self) -> None:
        self.log.append(self.name)

    def activate(self) -> None:
        self.log.append(f"+{self.name}")

    def step(self) -> None:
        self.log.append(f"~{self.name}")

    def release(self) -> None:
        self.log.append(f"-{self.name}")


def test_repetitions_are_interleaved() -> None:
    log: list[str] = []
    programs = {name: Recorder(name, log) for name in "abc"}
    spreads = interleaved(
        programs, torch.device("cpu"), Protocol(repetitions=20, seconds=9.0, minimum=1, rounds=3)
    )
    turns = [entry[1] for entry in log if entry.startswith("+")]
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"  # the estimate, then three rounds
    assert all(spread.repetitions >= 20 for spread in spreads.values())
    first_turn = log[log.index("-c") + 1 :]
    first_turn = first_turn[: first_turn.index("-a")]
    assert first_turn == [
        "+a",
        "a",
        *["~a", "a"] * 10,
    ]  # one untimed call; ten timed ones, weights changed before


def test_weights_change_between_calls_of_training() -> None:
    def weights(program: Program) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in program.peers[0].parameters()]

    for mode in MODES:
        program = our_contenders(())[0].build(job(SEQUENCE, mode))
        before = weights(program)
        program.step()
        changed = [not torch.equal(a, b) for a, b in zip(before, weights(program), strict=True)]
        assert all(changed) if mode == "train" else not any(changed)
        program.step()
        assert all(torch.equal(a, b) for a, b in zip(before, weights(program), strict=True))


def test_a_slow_contender_is_called_less_often() -> None:
    protocol = Protocol(repetitions=10, seconds=2.0, minimum=5, rounds=3)
    assert not protocol.satisfied([0.1] * 9) and protocol.satisfied([0.1] * 10)
    assert not protocol.satisfied([1.0] * 4) and protocol.satisfied([1.0] * 5)
    with pytest.raises(ValueError, match="repetitions: expected at least 1, got 0"):
        replace(protocol, repetitions=0)


def test_spread() -> None:
    assert Spread.of([4.0, 1.0, 5.0, 3.0, 2.0]) == Spread(3.0, pytest.approx(1.8), pytest.approx(4.2), 5)


def test_nothing_to_time() -> None:
    assert interleaved({}, torch.device("cpu"), FAST) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": torch.device("meta")}, "device: expected cpu or cuda, got meta"),
        ({"modes": ("backward",)}, "mode: expected some of forward, train"),
        ({"modes": ()}, "mode: expected some of forward, train"),
        ({"tf32": True}, "tf32: expected float32 on a GPU"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_make_no_sense(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**options)


def test_the_process_is_left_as_it_was() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    with prepared(Settings(), threads=1):
        assert torch.get_num_threads() == 1
        torch.backends.cudnn.benchmark = True
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == before


def test_one_set_of_data_on_a_cpu() -> None:
    assert len(data_sets(SEQUENCE, Settings())) == 1


def test_at_length() -> None:
    assert at_length(512).steps == 512 and at_length(512).name == "long_small[T=512]"


def test_ours_on_a_named_backend() -> None:
    (contender,) = our_contenders(("eager",))
    assert worst(Referee(job(SEQUENCE), ("train",)).judge(contender.build(job(SEQUENCE))))[1].ok
