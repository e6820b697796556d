"""Intervals, and what is concluded from records that are made up."""

from functools import cache

import pytest

from convgru_fused.comparison.analysis import Records, Side, accuracy, mean_of
from convgru_fused.comparison.document import Document, FusedTimes, thinned
from convgru_fused.comparison.hypotheses import FAILS, HOLDS, OPEN, findings
from convgru_fused.comparison.plan import plan_of
from convgru_fused.training import catalogue
from convgru_fused.training.engine import Result

FAMILIES = list(catalogue.FAMILIES)
# What the hypotheses expect, by task and family.
EXPECTED = {
    "dots": dict.fromkeys(FAMILIES, 0.9) | {"single_frame": 0.125, "late_fusion": 0.125, "lrcn": 0.125},
    "gaps": dict.fromkeys(FAMILIES, 0.75) | {"lrcn": 1.0, "convlstm": 0.95, "grurcn": 0.95},
    "paths": dict.fromkeys(FAMILIES, 0.5) | {"grurcn": 0.8},
}
BLIND = {"dots": 0.125, "gaps": 0.75, "paths": 0.5}


@cache
def plan(seeds, families):
    tasks = {
        "dots": {"steps": 10, "families": {"late_fusion": {"distance": 9}}},
        "gaps": {"steps": 10, "further_tests": {"2": {"gaps": [2]}, "18": {"gaps": [18]}}},
        "paths": {"steps": 10, "task_options": {"frames": 16}},
    }
    return plan_of({"seeds": seeds, "budget": 20000, "families": families, "tasks": tasks}, "test")


def document(accuracies=EXPECTED, *, seeds=5, families=FAMILIES, spread=0.01, **others):
    """Records with these accuracies, a little different from seed to seed."""
    chosen = plan(seeds, tuple(families))

    def result(run):
        found = accuracies[run.task][run.family] + spread * (run.seed - (seeds - 1) / 2)
        values = {
            "parameters": 20000, "flops": 10**6, "losses": [1.0] * 10, "accuracy": found,
            "shuffled_accuracy": BLIND[run.task], "reversed_accuracy": found,
            "further_accuracies": {"2": 0.9 + 0.01 * run.seed, "18": found},
            "layer_accuracies": {"pool1": 0.6, "fc7": 0.2} if run.family == "grurcn" else {},
            "kept_bytes": 1000, "seconds": 1.0,
        }  # fmt: skip
        return Result(run=run, **{**values, **others})

    machine = {"cpu": "some", "cores": 2, "gpu": None, "torch": "2", "convgru_fused": "0", "commit": ""}
    return Document(chosen, machine, "2026-01-01", [FusedTimes("dots", 16, 2, 12, 0.1, 0.3, 1e-6)], [
        result(run) for run in chosen.runs
    ])  # fmt: skip


def test_interval():
    """Student's, for the numbers of a textbook: 1 to 5 have the mean 3 and the standard error sqrt(0.5)."""
    found = mean_of([1, 2, 3, 4, 5])
    assert found.mean == 3 and found.count == 5
    assert found.half_width == pytest.approx(2.7764 * 0.5**0.5, rel=1e-4)
    assert (found.low, found.high) == (3 - found.half_width, 3 + found.half_width)
    assert str(mean_of([0.5])) == "0.500" and mean_of([0.5]).half_width is None
    with pytest.raises(ValueError, match="mean: expected at least one value, got none"):
        mean_of([])


def test_differences_are_paired():
    """Both families are better on the same seeds, so their difference has a narrow interval."""
    records = Records(document(spread=0.05))
    assert records.mean("dots", "c3d", accuracy).half_width > 0.05
    found = records.difference("dots", Side("c3d"), Side("lrcn"))
    assert found.mean == pytest.approx(0.775) and found.half_width < 1e-9
    assert records.difference("dots", Side("grurcn", "pool1"), Side("grurcn", "fc7")).mean == pytest.approx(
        0.4
    )


def verdicts(document):
    return [finding.verdict for finding in findings(Records(document))]


def test_everything_holds():
    assert verdicts(document()) == [HOLDS] * len(verdicts(document()))


@pytest.mark.parametrize(
    ("task", "family", "value", "text"),
    [
        ("dots", "single_frame", 0.3, "single_frame is at chance"),
        ("paths", "single_frame", 0.3, "single_frame is at chance"),  # two sides
        ("gaps", "single_frame", 0.8, "single_frame is at chance"),
        ("dots", "c3d", 0.2, "far above an LSTM"),
        ("dots", "late_fusion", 0.4, "late_fusion is at chance"),
        ("gaps", "lrcn", 0.7, "recurrences are above"),
        ("gaps", "c3d", 0.85, "windows shorter than the gap"),
        ("paths", "convlstm", 0.9, "GRU-RCN is the best"),
    ],
)
def test_a_hypothesis_that_fails(task, family, value, text):
    changed = {**EXPECTED, task: {**EXPECTED[task], family: value}}
    found = {finding.text: finding.verdict for finding in findings(Records(document(changed)))}
    assert [text in name for name, verdict in found.items() if verdict == FAILS].count(True) == 1


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ({"shuffled_accuracy": 0.9}, "with shuffled frames"),
        ({"reversed_accuracy": 0.3}, "Backwards"),
        ({"layer_accuracies": {"pool1": 0.15, "fc7": 0.2}}, "lowest layer alone"),
        ({"further_accuracies": {"2": 0.7, "18": 0.7}}, "where a window shows both events"),
    ],
)
def test_a_control_that_fails(others, text):
    found = findings(Records(document(**others)))
    assert FAILS in [finding.verdict for finding in found if text in finding.text]


def test_one_seed_and_no_records_decide_nothing_about_differences():
    for found in (document(seeds=1), document(families=["lrcn"])):
        best = [f for f in findings(Records(found)) if "far above" in f.text or "the best" in f.text]
        assert len(best) == 3 and all(finding.verdict == OPEN for finding in best)


def test_a_wide_interval_is_undecided():
    """C3D is above the LSTM by 0.12 on average, and by less than 0.1 for one seed of two."""
    changed = {**EXPECTED, "dots": {**EXPECTED["dots"], "c3d": 0.245}}
    records = document(changed, seeds=2)
    other = [r for r in records.results if r.run.family == "c3d" and r.run.task == "dots"]
    object.__setattr__(other[0], "accuracy", 0.35)
    (finding,) = [f for f in findings(Records(records)) if "3D convolution" in f.text]
    assert finding.verdict == OPEN
    assert [check.verdict for check in finding.checks].count(OPEN) == 1


def test_round_trip(tmp_path):
    found = document()
    found.save(tmp_path / "records.json")
    again = Document.load(tmp_path / "records.json")
    assert again == found and again.fused[0].factor == pytest.approx(3)
    for text in ("", "{}", '{"schema": 0}', "[]"):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=r"wrong\.json: expected the records of a comparison, got"):
            Document.load(tmp_path / "wrong.json")


def test_losses_are_thinned():
    result = document().results[0]
    object.__setattr__(result, "losses", [float(i) for i in range(1000)])
    losses = thinned(result).losses
    assert len(losses) == 50 and losses[0] == 9.5 and losses[-1] == 989.5
    object.__setattr__(result, "losses", [1.0, 2.0])
    assert thinned(result).losses == [1.0, 2.0]
