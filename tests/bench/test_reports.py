from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench_samples import record

from convgru_fused.bench import compare_report, plots, report
from convgru_fused.bench.analysis import best_peer, by_row, compare, comparisons, length_curves, means
from convgru_fused.bench.results import WRONG, Document
from convgru_fused.bench.tables import console, milliseconds, size, time_and_spread


def text_of(show, *args: object) -> str:
    stream = io.StringIO()
    show(*args, console(stream))
    return stream.getvalue()


def test_speedups(document: Document) -> None:
    forward, train = comparisons(document.rows)
    assert (forward.ours.mode, train.ours.mode) == ("forward", "train")
    assert forward.over_eager == pytest.approx(3) and forward.over_best == pytest.approx(2)
    assert forward.best.contender == "tuned" and forward.kept_ratio == pytest.approx(0.5)


def test_the_best_peer_is_right_and_not_ours() -> None:
    rows = [record("fused", 0.1), record("eager", 0.3), replace(record("tuned", 0.2), status=WRONG)]
    (row,) = by_row(rows).values()
    assert best_peer(row).contender == "eager"
    assert best_peer({}) is None


def test_means() -> None:
    rows = [
        record(name, t, w) for w in "ab" for name, t in (("fused", 1.0), ("eager", 2.0 if w == "a" else 99.0))
    ]
    (mean,) = means(comparisons(rows))
    assert mean.rows == 2 and mean.over_eager == pytest.approx(4)  # of 2 and 99, which counts as 8
    assert mean.slowest.ours.workload == "a"


def test_a_row_without_a_peer() -> None:
    (comparison,) = comparisons([record("fused", 1.0)])
    assert comparison.over_eager is comparison.over_best is comparison.kept_ratio is None
    assert means([comparison])[0].over_best is None


def test_length_curves(document: Document) -> None:
    ours, eager = length_curves(document)
    assert [T for T, _ in ours.points] == [16, 32, 64]
    assert ours.fit.per_step == pytest.approx(1e-3) and eager.fit.deviation == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (1.0, 0.5, "faster"),
        (1.0, 2.0, "slower"),
        (1.0, 1.1, "same"),
        (None, 1.0, "only in B"),
        (1.0, None, "only in A"),
    ],
    ids=str,
)
def test_comparison_of_runs_minds_the_spread(
    document: Document, a: float | None, b: float | None, verdict: str
) -> None:
    rows = [[record("fused", t), record("eager", 1.0)] for t in (a, b)]
    in_a, in_b = (replace(document, rows=of_run, lengths=[], models=[], video=None) for of_run in rows)
    changes = {change.key[2]: change for change in compare(in_a, in_b)}
    assert changes["fused"].verdict == verdict and changes["eager"].verdict == "same"
    assert changes["fused"].ratio == (pytest.approx(b / a) if a and b else None)


def test_comparison_report(document: Document) -> None:
    other = replace(document, machine={**document.machine, "threads": 1}, rows=[record("fused", 0.005)])
    text = text_of(compare_report.show, document, other, ("one.json", "two.json"))
    assert "A = one.json, B = two.json" in text and "differs: threads: 2 in A, 1 in B" in text
    assert "0.50" in text and "1 faster, 0 slower, 8 same, 5 only in A, 0 only in B" in text
    assert "T=64" in text and "pool2" in text  # not only the rows


def test_report(document: Document) -> None:
    text = text_of(report.show, document)
    columns = "workload mode time ms/step GFLOP/s kept of.eager's vs.eager vs.best.peer best.peer"
    assert re.search(columns.replace(" ", r"\s+"), text)
    assert "10.0 ms ±10%" in text and "3.00x" in text and "2.00x" in text and "tuned" in text
    assert "fused forward, 1 row: 3.00x eager, 2.00x the best peer (least 2.00x, sequence)" in text
    assert "T=16" in text and "T=64" in text and "off the line by" in text
    assert "a processor, 2 of 2 cores, AVX2; measured ceilings 100 GFLOP/s, 10 GB/s" in text
    assert "torch 2.13, convgru_fused 0.1; float32, variant gru-rcn, device cpu" in text
    assert "\x1b" not in text  # plain text where there is no terminal


def test_report_of_a_video(document: Document) -> None:
    text = text_of(report.show, document)
    assert "clip.mp4: 250 frames of 640x272 at 25/s; 3 clips of 10 frames" in text
    assert "pool2" in text and "all five" in text and "error/allowed" in text
    assert "frames per second, forward: fused 1000.0, eager 400.0" in text and "2.50x" in text


def test_report_of_several_of_ours_and_of_trouble(document: Document) -> None:
    wrong = replace(record("fused+recompute", None), status=WRONG, note="output is off")
    document.rows += [record("fused[cpu]", 0.040), wrong]
    text = text_of(report.show, document)
    assert "contender" in text and text.count("fused[cpu]") == 3 and "0.50x" in text
    assert "sequence forward: fused+recompute is wrong: output is off" in text


def test_report_of_nothing(document: Document) -> None:
    empty = replace(document, rows=[], lengths=[], video=None)
    assert text_of(report.show, empty).startswith("a processor")


def test_output_that_cannot_take_every_character(document: Document) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    report.show(document, console(stream))
    stream.flush()
    assert b"GFLOP/s" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.2345, "1234"), (0.01234, "12.3"), (0.001234, "1.23"), (1.234e-4, "0.123"), (None, "")],
)
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


def test_sizes_and_spreads() -> None:
    assert (size(88_309_760), size(1_327_104), size(None)) == ("88 MB", "1.33 MB", "")
    assert time_and_spread(record("eager", 0.010)) == "10.0 ms ±10%" and time_and_spread(None) == ""


def test_plots(document: Document, tmp_path: Path) -> None:
    written = plots.draw_all(document, tmp_path / "plots")
    assert [path.name for path in written] == ["speedup.png", "roofline.png", "time_against_T.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_plots_of_what_there_is(document: Document, tmp_path: Path) -> None:
    one_mode = replace(document, rows=[record("fused", 0.01)], lengths=[])
    assert [path.name for path in plots.draw_all(one_mode, tmp_path)] == ["speedup.png", "roofline.png"]
    assert plots.draw_all(replace(document, rows=[], lengths=[]), tmp_path) == []


def test_whole_models(document: Document) -> None:
    rows = [record(name, t, "raft_e2e") for name, t in (("fused", 1.0), ("eager", 1.5))]
    rows += [record(name, t, "raft_e2e[ConvGRU forward]") for name, t in (("fused", 0.2), ("eager", 0.5))]
    rows.append(replace(record("fused", None, "raft_e2e", "train"), status=WRONG, note="flow is off"))
    text = text_of(report.show, replace(document, rows=[], lengths=[], video=None, models=rows))
    assert "whole models, fused" in text
    assert "1.50x" in text and "2.50x" in text
    assert "raft_e2e train: fused is wrong: flow is off" in text
