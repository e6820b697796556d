from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_samples import DENSE, LOOP, SEQUENCE, job

from convgru_fused.bench import compiled, contenders, formulations
from convgru_fused.bench.check import Referee, worst
from convgru_fused.bench.contenders import PEERS, our_contenders, select_peers
from convgru_fused.bench.program import Program
from convgru_fused.bench.workloads import Workload

WORKLOADS = [SEQUENCE, DENSE, LOOP]
FORMULATIONS = [formulations.naive, formulations.eager, formulations.concatenated, formulations.tuned]
both_variants = pytest.mark.parametrize("variant", ["gru-rcn", "cudnn"])
every_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)


@both_variants
@every_workload
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=lambda f: f.__name__)
def test_formulations_are_the_same_function(formulation, workload: Workload, variant: str) -> None:
    exact = job(workload, variant=variant, dtype=torch.float64)
    expected = Program(exact, formulations.naive(exact)).results()
    found = Program(exact, formulation(exact)).results()
    assert found.keys() == expected.keys() and len(found) == 3 + 4 * len(workload.kernels)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-11)


@both_variants
@every_workload
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("name", ["naive", "eager", "tuned", "nn_gru", "fused", "fused[eager]", "recompute"])
def test_contenders_are_right(name: str, mode: str, workload: Workload, variant: str) -> None:
    ours = {c.name: c for c in our_contenders(("cpu", "eager"))}
    ours |= {"fused": our_contenders(())[0], "recompute": our_contenders((), recompute=True)[1]}
    contender = ours.get(name) or PEERS[name]
    asked = job(workload, mode, variant)
    if contender.inapplicable(asked):
        pytest.skip(contender.inapplicable(asked))
    errors = Referee(asked, (mode,)).judge(contender.build(asked))
    assert worst(errors)[1].ok, worst(errors)
    assert ("grad_x" in errors) == (mode == "train")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["naive", "eager", "tuned", "fused"])
def test_contenders_are_right_in_coarse_types(name: str, dtype: torch.dtype) -> None:
    contender = PEERS.get(name) or our_contenders(())[0]
    asked = job(SEQUENCE, dtype=dtype)
    errors = Referee(asked, ("train",)).judge(contender.build(asked))
    assert worst(errors)[1].ok, worst(errors)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("by_step", [False, True], ids=["sequence", "step"])
def test_compiled(mode: str, by_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_step:
        monkeypatch.setattr(compiled, "WHOLE_SEQUENCE_LIMIT", 1)
    monkeypatch.setattr(formulations, "eager", formulations.tuned)  # one candidate is enough to test the rest
    asked = job(SEQUENCE, mode)
    program = PEERS["compiled"].build(asked)
    assert program.compile_seconds > 0 and program.kept_bytes() is None
    assert program.detail.endswith("step" if by_step else "sequence")
    monkeypatch.undo()
    assert worst(Referee(asked, (mode,)).judge(program))[1].ok


def test_compiled_says_why_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> Program:
        raise ImportError("no compiler\nmore lines")

    monkeypatch.setattr(compiled, "_compile", broken)
    with pytest.raises(
        RuntimeError, match="tuned: ImportError: no compiler; eager: ImportError: no compiler$"
    ):
        compiled.build(job(SEQUENCE))


def test_tuned_takes_the_faster_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"split": 2.0, "concatenated": 1.0}
    monkeypatch.setattr(contenders, "best_of", lambda program, device: times[program.detail])
    assert PEERS["tuned"].build(job(LOOP)).detail == "concatenated"


def test_tuned_uses_matrix_products_for_dense_layers() -> None:
    assert PEERS["tuned"].build(job(DENSE)).detail == "linear"
    assert PEERS["tuned"].build(job(SEQUENCE)).detail == "hoisted"


def test_kept_bytes_counts_each_storage_once_and_nothing_of_the_callers() -> None:
    asked = job(SEQUENCE)
    (ours,) = our_contenders(())
    gates_and_states = 4 * asked.sets[0].grad_output.nbytes
    assert ours.build(asked).kept_bytes() == gates_and_states
    assert Program(replace(asked, mode="forward"), formulations.naive(asked)).kept_bytes() is None


def test_recompute_keeps_less() -> None:
    plain, recompute = (c.build(job(SEQUENCE)).kept_bytes() for c in our_contenders((), recompute=True))
    eager = PEERS["eager"].build(job(SEQUENCE)).kept_bytes()
    assert recompute < plain < eager


def test_gradients_do_not_accumulate_between_calls() -> None:
    program = PEERS["eager"].build(job(SEQUENCE))
    first = program.results()
    program()
    again = program.results()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_calls_rotate_over_the_sets() -> None:
    one = job(SEQUENCE, "forward")
    two = replace(one, sets=(one.sets[0], SEQUENCE.make_inputs(seed=1)))
    program = Program(two, formulations.eager(two))
    seen = []
    program._run = lambda leaves: seen.append(leaves.index)
    for _ in range(4):
        program()
    assert seen == [0, 1, 0, 1]


def test_names_of_ours() -> None:
    assert [c.name for c in our_contenders(())] == ["fused"]
    assert [c.name for c in our_contenders(("cpu",))] == ["fused"]
    names = [c.name for c in our_contenders(("cpu", "eager"), recompute=True)]
    assert names == ["fused[cpu]", "fused[cpu]+recompute", "fused[eager]", "fused[eager]+recompute"]
    assert [c.name for c in our_contenders((), in_graphs=True)] == ["fused", "fused+graphs"]


def test_inapplicable() -> None:
    for contender in (PEERS["graphed"], our_contenders((), in_graphs=True)[1]):
        assert "GPU" in contender.inapplicable(job(SEQUENCE))
    assert "no convolution" in PEERS["nn_gru"].inapplicable(job(SEQUENCE, variant="cudnn"))
    assert "cudnn" in PEERS["nn_gru"].inapplicable(job(DENSE))
    assert not PEERS["nn_gru"].inapplicable(job(DENSE, variant="cudnn"))


def test_unknown_peer() -> None:
    with pytest.raises(ValueError, match="unknown peer 'best': expected one of naive, eager, tuned, "):
        select_peers(["naive", "best"])
