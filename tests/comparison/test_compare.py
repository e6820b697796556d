"""The plans, the runs that follow from them, and the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convgru_fused.cli import main
from convgru_fused.comparison import command, execution
from convgru_fused.comparison.document import Document
from convgru_fused.comparison.plan import PRESETS, plan_of, read
from convgru_fused.training.budget import TOLERANCE, parameters_of, width_for
from convgru_fused.training.catalogue import FAMILIES
from convgru_fused.training.engine import RECORD, Result, Run

PLAN = """
seeds: 2
budget: 20000
families: [lrcn, grurcn]
tasks:
  dots:
    steps: 2
    batch_size: 2
    test_clips: 8
    families: {lrcn: {readout: last}}
  gaps:
    steps: 2
    batch_size: 2
    test_clips: 4
    task_options: {frames: 16, gaps: [2, 3]}
    test_options: {gaps: [3]}
    further_tests: {"2": {gaps: [2]}, "3": {gaps: [3]}}
"""


@pytest.fixture
def plan_file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(PLAN)
    return file


# Budgets.


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    """All families on all three tasks, with equal steps and, but for a tenth, parameters."""
    plan = read(PRESETS[preset])
    assert set(plan.families) == set(FAMILIES) and set(plan.tasks) == {"dots", "gaps", "paths"}
    assert len(plan.runs) == plan.seeds * 27 and len({run.name for run in plan.runs}) == len(plan.runs)
    for run in plan.runs[:27]:
        clips = run.clips(1)
        found = parameters_of(run.family, clips.num_classes, clips.frame_shape, **run.family_options)
        assert abs(found - plan.budget) <= TOLERANCE * plan.budget, run.name
        assert run.steps == plan.tasks[run.task].steps
    assert plan.seeds >= (5 if preset == "standard" else 1)


def test_a_budget_that_cannot_be_met():
    with pytest.raises(
        ValueError, match="budget: expected a number of parameters that grurcn can have, got 20;"
    ):
        width_for("grurcn", 8, (1, 32, 32), 20)


# Plans.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seeds": 0}, ValueError, "seeds: expected at least 1, got 0"),
        ({"budget": "many"}, TypeError, "budget: expected an int, got str"),
        ({"families": []}, ValueError, "families: expected at least one, got none"),
        ({"families": ["resnet"]}, ValueError, "families: expected one of 'single_frame', .*, got 'resnet'"),
        ({"tasks": {"chess": {"steps": 1}}}, ValueError, "tasks: expected one of 'dots', .*, got 'chess'"),
        ({"tasks": {"dots": {}}}, ValueError, "file: tasks: dots: expected steps, got none"),
        (
            {"tasks": {"dots": {"steps": 1, "speed": 2}}},
            ValueError,
            "dots: expected fields among .*, got 'speed'",
        ),
        ({"tasks": {"dots": 5}}, ValueError, "file: tasks: dots: expected fields and their values, got int"),
        (
            {"tasks": {"gaps": {"steps": 1, "test_options": {"gaps": [30]}}}},
            ValueError,
            "tasks: gaps: frames: expected at least 42, got 30",
        ),
        ({"rows": 1}, ValueError, "file: expected fields among seeds, .*, got 'rows'"),
    ],
    ids=str,
)
def test_wrong_plans(change, error, message):
    values = {"seeds": 1, "budget": 20000, "families": ["lrcn"], "tasks": {"dots": {"steps": 1}}, **change}
    with pytest.raises(error, match=message):
        plan_of(values, "file")


def test_a_plan_that_cannot_be_read(tmp_path):
    for text in (None, "a: [", "5"):
        file = tmp_path / "plan.yaml"
        if text is not None:
            file.write_text(text)
        with pytest.raises(ValueError, match=r"plan\.yaml: expected"):
            read(file)


# The command.


def compare(*args):
    return main(["compare", "--jobs", "2", *map(str, args)])


def test_command(plan_file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert compare("--config", plan_file, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "8 of 8: " in printed and "8 of 8 runs; 2 seeds" in printed
    assert re.search(r"GRU-RCN's training step on gaps: \d+ ms eager, \d+ ms fused", printed)
    document = Document.load(out / command.RECORDS)
    assert len(document.results) == 8
    for result in document.results:
        assert result.kept_bytes > 1000 and result.seconds > 0
        assert set(result.further_accuracies) == ({"2", "3"} if result.run.task == "gaps" else set())
        if result.run.task == "gaps":  # it is tested on what it is to be tested on
            assert result.accuracy == result.further_accuracies["3"]
    assert [times.task for times in document.fused] == ["dots", "gaps"]
    assert all(times.loss_difference < 1e-4 for times in document.fused)

    report = (out / command.REPORT).read_text()
    pictures = sorted(file.name for file in out.glob("*.svg"))
    assert pictures == [f"comparison-{name}.svg" for name in ("accuracy", "cost", "extent", "layers")]
    assert report.count("<svg") == 4 and report.count("<table>") == 2
    for text in ("grurcn", "pool1", "Hypotheses", "kept/clip"):
        assert text in report
    assert not re.search(r'(src|href)="(?!#)', report)  # one file: nothing is fetched

    # Again: nothing is run, here or in another folder that has only the records.
    monkeypatch.setattr(execution, "ProcessPoolExecutor", lambda *args, **kwargs: pytest.fail("a run"))
    assert compare("--config", plan_file, "--out", out) == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / command.RECORDS).write_text((out / command.RECORDS).read_text())
    assert compare("--config", plan_file, "--out", other) == 0
    assert Document.load(other / command.RECORDS).results == document.results
    assert compare("--records", out / command.RECORDS, "--out", tmp_path / "third") == 0
    assert (tmp_path / "third" / command.REPORT).read_text() == report


def test_in_pieces(plan_file, tmp_path, capsys):
    """Nothing is begun after no minutes; what is missing is run later."""
    assert compare("--config", plan_file, "--out", tmp_path, "--minutes", 0) == 0
    assert "0 of 8 runs" in capsys.readouterr().out
    assert compare("--config", plan_file, "--out", tmp_path) == 0
    first = Document.load(tmp_path / command.RECORDS)
    lost = tmp_path / "runs" / "gaps-lrcn-1"
    (lost / RECORD).unlink()
    (tmp_path / command.RECORDS).unlink()
    capsys.readouterr()
    assert compare("--config", plan_file, "--out", tmp_path) == 0
    assert "7 of 8 runs are there\n8 of 8: gaps-lrcn-1" in capsys.readouterr().out
    assert Document.load(tmp_path / command.RECORDS).results == first.results


def test_records_of_another_plan(plan_file, tmp_path, capsys):
    assert compare("--config", plan_file, "--out", tmp_path, "--minutes", 0) == 0
    folder = tmp_path / "runs" / "dots-lrcn-0"
    folder.mkdir(parents=True)
    run = next(run for run in read(plan_file).runs if run.name == folder.name)
    result = Result(run, 1, 1, [1.0], 0.5, 0.5, 0.5, {}, {}, 1, 1.0)
    result.save(folder / RECORD)
    values = json.loads((folder / RECORD).read_text())
    values["run"]["steps"] = 3
    (folder / RECORD).write_text(json.dumps(values))
    assert compare("--config", plan_file, "--out", tmp_path) == 2
    assert "expected the record of this plan's run, got one with another steps" in capsys.readouterr().err
    (folder / RECORD).write_text("")
    assert compare("--config", plan_file, "--out", tmp_path) == 2
    assert "expected the record of a run, got" in capsys.readouterr().err


def test_a_run_that_fails(plan_file, tmp_path, capsys):
    """The others are run, and the report is there."""
    plan_file.write_text(PLAN.replace("seeds: 2", "seeds: 1"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dots-grurcn-0").write_text("where a folder should be")
    assert compare("--config", plan_file, "--out", tmp_path) == 1
    captured = capsys.readouterr()
    assert "3 of 4 runs" in captured.out
    assert "failed: dots-grurcn-0: FileExistsError: " in captured.err
    assert (tmp_path / command.REPORT).exists()


SLOW = """
seeds: 1
budget: 20000
families: [lrcn, grurcn]
tasks: {dots: {steps: 100000, batch_size: 2}}
"""


@pytest.fixture
def started(plan_file, tmp_path):
    """The command on long runs, and its children, from /proc: multiprocessing's own, and two that train."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    plan_file.write_text(SLOW)
    options = ["compare", "--jobs", "2", "--config", plan_file, "--out", tmp_path]
    command = [sys.executable, "-m", "convgru_fused", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not all((tmp_path / "runs" / f"dots-{name}-0").exists() for name in ("lrcn", "grurcn")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield process, [int(pid) for pid in children.split()]
        process.kill()


def ended(pid):
    for _ in range(300):
        if not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text():
            return True
        time.sleep(0.1)
    return False


def test_processes_end_with_a_killed_command(started):
    process, children = started
    process.kill()
    process.wait()
    assert len(children) == 3 and all(ended(pid) for pid in children)


def test_a_killed_process(started):
    process, children = started
    os.kill(children[1], signal.SIGKILL)  # the first that trains: the pool sees the last one later
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "a process was killed; the same command goes on" in error
    assert all(ended(pid) for pid in children)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "slow"], "preset: expected one of 'quick', 'standard', got 'slow'"),
        (["--config", "none.yaml"], "none.yaml: expected a plan in YAML"),
        (["--records", "none.json"], "none.json: expected the records of a comparison"),
        (["--preset", "quick", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
    ],
)
def test_wrong_options(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare(*options) == 2
    assert message in capsys.readouterr().err


def test_interrupted(plan_file, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "execute", interrupt)
    assert compare("--config", plan_file, "--out", tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_run_is_its_name():
    assert Run("lrcn", "dots", seed=3).name == "dots-lrcn-3"


def test_options_of_a_family(plan_file):
    runs = read(plan_file).runs
    found = {(run.task, run.family): run.family_options.get("readout") for run in runs}
    assert found[("dots", "lrcn")] == "last" and [*found.values()].count("last") == 1
