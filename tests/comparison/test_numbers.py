"""That what is compared is told apart, and put into the right columns."""

import time

import pytest
from test_analysis import document

from convgru_fused.backends import selected
from convgru_fused.comparison import execution, report
from convgru_fused.comparison.analysis import Mean, Records
from convgru_fused.comparison.hypotheses import FAILS, HOLDS, OPEN, _judged, findings
from convgru_fused.training.engine import Run


def test_fused_and_eager_steps_are_told_apart(monkeypatch):
    step, seen = execution.take_step, []

    def slower(run, number, *args):
        seen.append((number, selected()))
        time.sleep(0.02 if selected() == "eager" else 0)
        return step(run, number, *args)

    monkeypatch.setattr(execution, "take_step", slower)
    monkeypatch.setattr(execution, "_TIMED_STEPS", 3)
    times = execution.time_fused(Run("grurcn", "dots", batch_size=2), "cpu")
    assert seen == [(number, backend) for number in range(5) for backend in (None, "eager")]
    assert times.eager_seconds > 0.02 and times.eager_seconds > times.fused_seconds


def test_a_control_that_is_worse_backwards():
    (found,) = [f for f in findings(Records(document(reversed_accuracy=0.0))) if "Backwards" in f.text]
    assert [check.verdict for check in found.checks] == [FAILS] * len(found.checks)


@pytest.mark.parametrize(("mean", "verdict"), [(0.02, FAILS), (0.08, OPEN), (0.12, OPEN), (0.2, HOLDS)])
def test_only_a_whole_interval_decides(mean, verdict):
    assert _judged("a - b", Mean(mean, 0.05, 2), 0.1).verdict == verdict


def test_bounds_are_of_all_clips_of_all_seeds():
    texts = [check.text for finding in findings(Records(document())) for check in finding.checks]
    assert "dots: single_frame 0.125, to be within 0.020 of 0.125" in texts  # 3 of sqrt(1/8 7/8 / 2560)
    assert "dots: c3d +0.000, to be within 0.025" in texts  # 3 of sqrt(2 * 0.9 * 0.1 / 2560)


def test_columns_of_the_tables():
    tables = report._tables(Records(document(shuffled_accuracy=0.2, reversed_accuracy=0.3, seconds=2.0)))
    names, *rows = tables[0][1]
    (row,) = [dict(zip(names, row, strict=True)) for row in rows if row[0] == "c3d"]
    means = [row[name].partition(" ")[0] for name in ("accuracy", "shuffled", "backwards")]
    assert means == ["0.900", "0.200", "0.300"]
    assert (row["ms/step"], row["parameters"], row["Mflop/clip"], row["seeds"]) == (
        "200",
        "20000",
        "1.0",
        "5",
    )
