"""A run ends the same however often it is interrupted; its record says what the controls say."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from convgru_fused import use_backend
from convgru_fused.cli import main
from convgru_fused.training import command
from convgru_fused.training.catalogue import FAMILIES
from convgru_fused.training.engine import CHECKPOINT, RECORD, Run, evaluate, evaluate_layers, flops_of, train
from convgru_fused.training.processes import Processes

DOTS = dict(task="dots", steps=12, batch_size=4, test_clips=16, task_options={"dots": 20})
DROPPING = Run("lrcn", **DOTS, family_options={"dropout": 0.5})


def weights(folder):
    return torch.load(folder / CHECKPOINT, weights_only=True)["model"]


KILLED = """
import os, signal
from pathlib import Path
from test_engine import DROPPING
from convgru_fused.training.engine import train

def kill(step, loss):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

train(DROPPING, Path(FOLDER), save_every=5, on_step=kill)
"""


def test_killed_and_resumed_is_the_same(run_python, tmp_path):
    torch.set_num_threads(1)
    whole = train(DROPPING, tmp_path / "whole", save_every=5)
    folder = tmp_path / "killed"
    code = f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r}); FOLDER = {str(folder)!r}\n"
    killed = run_python(code + KILLED, OMP_NUM_THREADS="1")
    assert killed.returncode == -9 and not (folder / RECORD).exists(), killed.stderr
    steps = []
    resumed = train(DROPPING, folder, save_every=5, on_step=lambda step, loss: steps.append(step))
    assert steps == [5, 6, 7, 8, 9, 10, 11]
    assert resumed == whole
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_a_finished_run_is_only_evaluated_again(tmp_path):
    first = train(DROPPING, tmp_path)
    assert train(DROPPING, tmp_path, on_step=lambda step, loss: pytest.fail("a step")) == first


def test_seeds_differ_and_repeat(tmp_path):
    first, again, other = (
        train(replace(DROPPING, seed=seed), tmp_path / name).losses
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert not set(first) & set(other)


def test_workers_change_nothing(tmp_path):
    run = Run("single_frame", **DOTS)
    assert train(run, tmp_path / "none") == train(run, tmp_path / "two", workers=2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["dots", "events", "paths"])  # tests/data has those from videos
def test_every_family_on_every_generated_task(family, task, tmp_path):
    options = {"events": {"gap": 2}, "paths": {"frames": 16}, "dots": {"frames": 16}}[task]
    run = Run(family, task, steps=2, batch_size=2, test_clips=2, task_options=options)
    result = train(run, tmp_path)
    assert len(result.losses) == 2 and all(loss > 0 for loss in result.losses)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["run"]["family"] == family and record["losses"] == result.losses
    assert result.parameters == sum(p.numel() for p in run.model().parameters() if p.requires_grad)


def test_it_learns_and_the_controls_say_what(tmp_path):
    """Direction of motion: gone with the order of frames; reversed, the other direction."""
    options = {"coherence": (1.0, 1.0)}
    run = Run("early_fusion", "dots", steps=160, learning_rate=3e-3, test_clips=200, task_options=options)
    result = train(run, tmp_path)
    assert result.accuracy > 0.5 and result.reversed_accuracy > 0.5
    assert result.shuffled_accuracy < 0.25  # chance is an eighth
    blind = train(replace(run, family="single_frame", steps=20), tmp_path / "blind")
    assert blind.accuracy < 0.25


def test_losses_do_not_depend_on_the_backend(tmp_path):
    run = Run("grurcn", **{**DOTS, "steps": 3})
    losses = {}
    for name in ("eager", "cpu"):
        with use_backend(name):
            losses[name] = torch.tensor(train(run, tmp_path / name).losses)
    torch.testing.assert_close(losses["cpu"], losses["eager"], atol=0, rtol=1e-4)


def test_amp(tmp_path):
    result = train(Run("lrcn", **DOTS), tmp_path, amp=torch.bfloat16)
    assert all(loss > 0 for loss in result.losses)


def test_evaluation_leaves_the_mode_alone():
    run = Run("lrcn", **DOTS)
    model = run.model().train()
    evaluate(model, run.clips(4, test=True))
    assert model.training


def test_operations():
    """Of what is known by hand; the fused operator counts like the eager one."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 3, 3, padding=1)
            self.rnn = torch.nn.LSTM(3 * 32 * 32, 5)

        def forward(self, clip):
            return self.rnn(self.convolution(clip.flatten(0, 1)).flatten(1)[None])[0]

    items = Run("lrcn", **DOTS).items(1)
    frames = items[0][0].size(0)
    convolution, products = 9 * 3 * 32 * 32, 4 * 5 * (3 * 32 * 32 + 5)
    assert flops_of(Model(), items) == 2 * frames * (convolution + products)
    run = Run("grurcn", **DOTS)
    with use_backend("cpu"):
        found = flops_of(run.model(), run.items(1))
    with use_backend("eager"):
        assert flops_of(run.model(), run.items(1)) == found > 10**7


def test_accuracy_of_each_layer(tmp_path):
    result = train(Run("grurcn", **DOTS), tmp_path)
    assert list(result.layer_accuracies) == ["pool1", "pool2", "pool3", "pool4", "fc7"]
    assert all(0 <= accuracy <= 1 for accuracy in result.layer_accuracies.values())
    model, items = Run("grurcn", **DOTS).model().eval(), Run("grurcn", **DOTS).items(5, test=True)
    accuracy, layers = evaluate_layers(model, items, batch_size=2)
    assert accuracy == evaluate(model, items)
    found = layers["pool2"]
    scores = [
        model.layer_scores(clip[None])[0, 1].argmax().item() == label
        for clip, label in map(items.__getitem__, range(5))
    ]
    assert found == sum(scores) / 5
    assert train(Run("lrcn", **DOTS), tmp_path / "none").layer_accuracies == {}


def test_time_goes_on_after_a_stop(tmp_path):
    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        train(DROPPING, tmp_path, save_every=5, on_step=stop)
    before = torch.load(tmp_path / CHECKPOINT, weights_only=True)["seconds"]
    assert train(DROPPING, tmp_path).seconds > before > 0


def test_test_clips_are_others():
    run = Run("lrcn", **DOTS)
    assert not torch.equal(run.clips(1)[0][0], run.clips(1, test=True)[0][0])


def test_rate():
    run = Run("lrcn", "dots", steps=100, learning_rate=2.0)
    rates = [run.rate(step) for step in range(100)]
    assert max(rates) == rates[4] == rates[5] == 2.0 and rates[0] == pytest.approx(0.4)
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0 < rates[-1] < 0.01


BAD = {
    "family": (dict(family="gru"), ValueError, "family: expected one of 'single_frame', .* got 'gru'"),
    "task": (
        dict(task="chess"),
        ValueError,
        "task: expected one of 'dots', .* got 'chess'",
    ),
    "steps": (dict(steps=0), ValueError, "steps: expected at least 1, got 0"),
    "seed": (dict(seed=-1), ValueError, "seed: expected at least 0"),
    "batch": (dict(batch_size=2.5), TypeError, "batch_size: expected an int, got float"),
    "rate": (dict(learning_rate=float("nan")), ValueError, "learning_rate: expected at least 0, got nan"),
}


@pytest.mark.parametrize(("change", "error", "words"), BAD.values(), ids=BAD)
def test_bad_runs(change, error, words):
    with pytest.raises(error, match=words):
        Run(**{"family": "lrcn", "task": "dots", **change})


def test_other_checkpoints_are_refused(tmp_path):
    train(DROPPING, tmp_path)
    with pytest.raises(
        ValueError, match=r"checkpoint.pt: expected the checkpoint of this run, .* another seed"
    ):
        train(replace(DROPPING, seed=1), tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"half of a")
    with pytest.raises(ValueError, match=r"checkpoint.pt: expected a checkpoint, got"):
        train(DROPPING, tmp_path)


STOPPED = """
import torch
from pathlib import Path
from convgru_fused.training.engine import Run, train
from convgru_fused.training.processes import joined

class Stop(Exception):
    pass

def stop(step, loss):
    if step == 4:
        raise Stop

run = Run("grurcn", "dots", steps=6, batch_size=4, test_clips=8, family_options={"dropout": 0.5})
with joined(torch.device("cpu"), SHARDED) as (processes, device):
    whole = train(run, Path(FOLDER) / "whole", processes=processes)
    try:
        train(run, Path(FOLDER) / "stopped", save_every=4, on_step=stop, processes=processes)
    except Stop:
        pass
    assert train(run, Path(FOLDER) / "stopped", processes=processes) == whole
    print("the same")
"""


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_go_on_as_one_would(run_in_two_processes, sharded):
    assert run_in_two_processes(f"SHARDED = {sharded}\n" + STOPPED).count("the same") == 2


@pytest.mark.parametrize("how", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one(run_python, tmp_path, how):
    """By torchrun: the same losses."""
    options = ["train", "--family", "lrcn", "--task", "dots", "--batch-size", "8", "--test-clips", "8"]
    options += ["--save-every", "4"]

    def losses(steps, folder, *start):
        command = [*options, "--steps", str(steps), "--out", str(folder), *how]
        arguments = [*start, "-m", "convgru_fused", *command]
        code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, *{arguments!r}]))"
        result = run_python(code, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("accuracy") == 1
        return torch.tensor(json.loads((folder / RECORD).read_text())["losses"])

    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    expected, together = losses(6, tmp_path / "one"), losses(6, tmp_path / "two", *two)
    torch.testing.assert_close(together, expected, atol=0, rtol=1e-4)
    run = Run("lrcn", "dots", steps=6, batch_size=8, test_clips=8)
    with pytest.raises(ValueError, match="expected a checkpoint of 1 processes, got 2"):
        train(run, tmp_path / "two")
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 3 processes, got 8"):
        train(run, tmp_path, processes=Processes(0, 3))


def test_command(tmp_path, capsys):
    command = ["train", "--family", "lrcn", "--task", "dots", "--steps", "50", "--batch-size", "2"]
    command += ["--test-clips", "4", "--out", str(tmp_path)]
    assert main(command) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith("step 50 of 50: loss ") and text[1].startswith("accuracy 0.")
    assert main([*command, "--seed", "3"]) == 2
    assert "another seed" in capsys.readouterr().err
    assert main([*command, "--learning-rate", "-1"]) == 2
    assert "learning_rate: expected at least 0, got -1.0" in capsys.readouterr().err


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_configuration(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("family: lrcn\ntask: dots\nsteps: 7\ntask_options: {dots: 20}\n")
    expected = Run("lrcn", "dots", seed=3, steps=7, task_options={"dots": 20})
    assert command.run_of(parsed("--config", str(file), "--seed", "3")) == expected
    for text, words in {
        "family: lrcn": "--task: expected one, or a configuration that has it",
        "family: [": "run.yaml: expected a configuration in YAML",
        "- lrcn": "run.yaml: expected fields of a run and their values, got list",
        "family: lrcn\nepochs: 3": "run.yaml: expected fields among family, .* got 'epochs'",
        "family: gru\ntask: dots": "family: expected one of",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            command.run_of(parsed("--config", str(file)))
    with pytest.raises(ValueError, match="--on-error: expected with --task videos"):
        command.run_of(parsed("--family", "lrcn", "--task", "dots", "--on-error", "skip"))
    with pytest.raises(ValueError, match=r"gone.yaml: expected a configuration"):
        command.run_of(parsed("--config", str(tmp_path / "gone.yaml")))


def test_tensorboard(tmp_path, capsys):
    """Every step once, also where a run was stopped."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["train", "--family", "lrcn", "--task", "dots", "--batch-size", "2", "--test-clips", "4"]
    options += ["--steps", "6", "--save-every", "2", "--out", str(tmp_path), "--tensorboard"]
    assert main(options) == 0
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    checkpoint["losses"] = checkpoint["losses"][:4]  # as if it had been stopped there
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    assert main(options) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = json.loads((tmp_path / RECORD).read_text())["losses"]
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == list(range(6))
    assert [event.value for event in shown] == pytest.approx(losses)
    assert events.Scalars("accuracy")[-1].step == 6
