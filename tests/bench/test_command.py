from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import convgru_fused
from convgru_fused import numerics
from convgru_fused.bench import command, contenders, measure, plan, suite
from convgru_fused.bench.contenders import Contender
from convgru_fused.bench.program import Program
from convgru_fused.bench.results import Document, load
from convgru_fused.bench.suite import count_steps, execute

SMALL = ["--video", "none", "--rows", "tiny", "--peers", "eager", "--repetitions", "1"]


def bench(*options: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(options))


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert bench(*SMALL) == 0
    out, err = capsys.readouterr()
    assert "tiny" in out and "vs best peer" in out and "fused forward, 1 row: " in out and err == ""
    written = {path.name for path in (tmp_path / "bench-results").iterdir()}
    assert written == {"bench.json", "speedup.png", "roofline.png"}
    found = load(tmp_path / "bench-results" / "bench.json")
    assert found.finished and [r.key for r in found.rows] == [
        ("tiny", mode, name) for mode in ("forward", "train") for name in ("fused", "eager")
    ]
    assert found.settings["repetitions"] == 1 and found.machine["threads"] == torch.get_num_threads()


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--mode", "forward", "--dtype", "bfloat16", "--variant", "cudnn", "--backend", "cpu,eager"]
    places = ["--json", "deep/a.json", "--plots", "pictures", "--threads", "1"]
    assert bench(*SMALL, *options, *places, "--precision", "strict") == 0
    found = load(tmp_path / "deep" / "a.json")
    assert {r.contender for r in found.rows} == {"fused[cpu]", "fused[eager]", "eager"}
    assert (found.settings["dtype"], found.settings["variant"]) == ("bfloat16", "cudnn")
    assert found.settings["precision"] == "strict" and numerics.is_fast()  # it was for the benchmark alone
    assert "bfloat16 strict, variant cudnn" in capsys.readouterr().out
    assert found.machine["threads"] == 1 and (tmp_path / "pictures" / "speedup.png").exists()


def test_comparison(document: Document, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    document.save(tmp_path / "a.json")
    document.save(tmp_path / "b.json")
    assert bench("--compare", "a.json", "b.json") == 0
    assert "0 faster, 0 slower, 14 same" in capsys.readouterr().out


def test_show(document: Document, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    document.save(tmp_path / "a.json")
    assert bench("--show", "a.json") == 0
    shown = capsys.readouterr().out
    assert "fused forward, 1 row" in shown and "plots:" not in shown
    assert bench("--show", "a.json", "--rows", document.rows[0].workload) == 0
    assert "fused forward, 1 row" in capsys.readouterr().out
    assert bench("--show", "a.json", "--rows", "other") == 2
    assert "--rows: expected some of " in capsys.readouterr().err
    assert bench("--show", "a.json", "--plots", "drawn") == 0
    assert (tmp_path / "drawn" / "speedup.png").exists() and "plots: drawn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "tin"], "unknown workload 'tin': expected one of gru_rcn_pool2, "),
        (["--peers", "best"], "unknown peer 'best': expected one of naive, "),
        (["--backend", "magic"], "got 'magic'"),
        (["--device", "abacus"], "--device: expected cpu, cuda or cuda:N, got 'abacus'"),
        (["--device", "meta"], "device: expected cpu or cuda, got meta"),
        (["--tf32"], "tf32: expected float32 on a GPU"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--repetitions", "0"], "repetitions: expected at least 1, got 0"),
        (["--vgg-weights", "none.pt"], "none.pt: expected the state dict of a VGG-16, got [Errno 2] No "),
        (["--vgg-weights", "/dev/null"], "/dev/null: expected the state dict of a VGG-16, got "),
        (["--suite", "none"], "nothing to run"),
        (["--video", "none.mp4"], "none.mp4: expected a video that FFmpeg can decode"),
        (["--video", "default", "--clips", "0"], "clips: expected at least 1, got 0"),
        (["--compare", "none.json", "none.json"], "none.json: expected a benchmark result"),
        (["--show", "none.json"], "none.json: expected a benchmark result"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_requests(options: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    video = [] if "--video" in options else ["--video", "none"]
    assert bench(*video, *options) == 2
    out, err = capsys.readouterr()
    assert words in err and err.startswith("bench: ") and err.count("\n") == 1 and out == ""


def test_no_names(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        bench("--rows", " , ")
    assert exit.value.code == 2 and "--rows: expected names, or none, got ' , '" in capsys.readouterr().err


def test_a_folder_for_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out before anything is measured."""
    monkeypatch.setattr(measure, "measure_mode", None)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        bench("--rows", "tiny", "--video", "none", "--plots", "file/plots")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture) -> None:
    assert bench("--video", "none", "--device", "cuda") == 2
    assert "device: expected one that is there, got cuda" in capsys.readouterr().err


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(plan, "read_clips", lambda *args: __import__("av"))
    assert bench("--suite", "none") == 2
    assert "expected the package 'av', found none: pip install" in capsys.readouterr().err


def test_an_interrupted_run_leaves_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = measure.measure_mode

    def interrupted(job, *args):
        if job.mode == "train":
            raise KeyboardInterrupt
        return whole(job, *args)

    monkeypatch.setattr(measure, "measure_mode", interrupted)
    assert bench(*SMALL) == 130
    err = capsys.readouterr().err
    assert "interrupted; finished and readable: tiny forward; results: bench-results/bench.json" in err
    found = load(tmp_path / "bench-results" / "bench.json")
    assert not found.finished and {r.mode for r in found.rows} == {"forward"}


def test_interrupted_before_anything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure_workload", interrupted)
    assert bench(*SMALL) == 130
    assert "nothing was finished" in capsys.readouterr().err


def test_ours_being_wrong_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def build(job) -> Program:
        wrong = replace(job, variant="cudnn")
        return Program(job, contenders.formulations.eager(wrong))

    planted = (Contender("fused", "", build, is_ours=True),)
    monkeypatch.setattr(measure, "our_contenders", lambda *asked: planted)
    assert bench(*SMALL, "--mode", "forward") == 1
    assert "tiny forward: fused is wrong: output is off" in capsys.readouterr().out.replace("\n", " ")


def parsed(*options: str) -> plan.Plan:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return plan.make_plan(parser.parse_args(options))


def test_lengths_use_a_row_that_was_just_measured(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(parsed("--video", "none"), workloads=(), lengths=(64, 128))
    rows = [replace(record, workload="long_small") for record in document.rows]
    document.rows, document.lengths = rows, []
    measured = []
    monkeypatch.setattr(
        suite, "measure_workload", lambda w, *args: iter([[]] if measured.append(w.name) else [[], []])
    )
    monkeypatch.setattr(suite.machine, "ceilings", lambda *args: {"gflops": 150.0, "gbytes_per_s": 5.0})
    done: list[int] = []
    execute(made, document, lambda line: None, lambda: done.append(1))
    assert measured == ["long_small[T=64]"] and len(done) == count_steps(made) == 4
    names = [(record.workload, record.mode, record.contender) for record in document.lengths]
    assert document.ceilings == {"gflops": 150.0, "gbytes_per_s": 10.0}  # the better of before and after
    assert names == [("long_small[T=128]", m, c) for m in ("forward", "train") for c in ("fused", "eager")]


def test_full_suite() -> None:
    made = parsed("--video", "none", "--suite", "full")
    assert len(made.workloads) == 14 and made.lengths[-1] == 512 and "compiled" in made.settings.peers
    assert parsed("--video", "none", "--suite", "full", "--rows", "tiny").lengths == ()


def test_the_package_does_not_import_the_benchmark() -> None:
    code = (
        "import sys, convgru_fused; "
        "print([m for m in ('convgru_fused.bench', 'rich', 'matplotlib', 'av') if m in sys.modules])"
    )
    root = Path(convgru_fused.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
