"""That a run does what its fields say: clipping, decay, modes, types, seeds."""

import pytest
import torch
from test_engine import DOTS

from convgru_fused.cli import main
from convgru_fused.kept import kept_bytes
from convgru_fused.training import engine
from convgru_fused.training.engine import Run, _kept_bytes, evaluate, optimizer_of, take_step, train


def test_gradients_are_clipped_and_weights_decay():
    run = Run("lrcn", **DOTS, clip_norm=1e-3, weight_decay=0.1)
    model = run.model()
    optimizer = optimizer_of(run, model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    clip, label = run.items(1)[0]
    take_step(run, 0, model, optimizer, clip[None], torch.tensor([label]), torch.device("cpu"))
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    assert torch.cat(gradients).norm() == pytest.approx(1e-3, rel=1e-3)


def test_evaluation_is_without_dropout():
    class Model(torch.nn.Module):
        def forward(self, clip):
            assert not self.training and torch.is_inference_mode_enabled()
            return torch.zeros(len(clip), 8).log_softmax(-1)

    evaluate(Model().train(), Run("lrcn", **DOTS).clips(4, test=True))


def test_amp_is_in_force(tmp_path):
    run = Run("lrcn", **{**DOTS, "steps": 2})
    whole, half = (train(run, tmp_path / str(amp), amp=amp).losses for amp in (None, torch.bfloat16))
    assert whole[0] != half[0] and whole[0] == pytest.approx(half[0], rel=0.05)


def test_amp_of_the_command(tmp_path):
    command = [
        "train",
        "--family",
        "lrcn",
        "--task",
        "dots",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--test-clips",
        "2",
    ]
    losses = []
    for more in ([], ["--amp", "bfloat16"]):
        folder = tmp_path / str(len(more))
        assert main([*command, *more, "--out", str(folder)]) == 0
        losses.append(engine.Result.load(folder / engine.RECORD).losses)
    assert losses[0] != losses[1]


def test_kept_bytes_are_of_a_clip():
    run = Run("grurcn", **DOTS)
    model, clip = engine.in_channels_last(run.model().train()), run.items(1)[0][0][None]
    one = kept_bytes(lambda: model(clip), without=(clip, *model.parameters()))
    assert _kept_bytes(run, torch.device("cpu")) == pytest.approx(one, rel=0.1)


def test_interrupted_training(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train", interrupted)
    assert main(["train", "--family", "lrcn", "--task", "dots", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


SEEDS = """
import torch
from pathlib import Path
from convgru_fused.training.engine import Run, train
from convgru_fused.training.processes import joined
run = Run("lrcn", "dots", steps=1, batch_size=2, test_clips=2, seed=3)
with joined(torch.device("cpu")) as (processes, device):
    train(run, Path(FOLDER), processes=processes)
    print(f"seed {torch.initial_seed()}.")
"""


def test_processes_drop_different_elements(run_in_two_processes):
    printed = run_in_two_processes(SEEDS)
    assert "seed 6." in printed and "seed 7." in printed
