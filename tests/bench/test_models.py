"""Whole models, fused and as they are; small images here."""

import pytest
import torch

from convgru_fused import functional
from convgru_fused.bench import models, published, timing
from convgru_fused.bench.measure import Settings
from convgru_fused.bench.results import FAILED, NOT_APPLICABLE, OK, WRONG

SETTINGS = Settings(protocol=timing.Protocol(repetitions=1, seconds=0.1, minimum=1, rounds=1))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "HEIGHT", 128)
    monkeypatch.setattr(models, "WIDTH", 128)
    monkeypatch.setattr(models, "UPDATES", 2)


def test_records() -> None:
    forward, train = models.measure_model("raft_e2e", SETTINGS)
    assert [(r.workload, r.mode, r.contender, r.status) for r in forward] == [
        ("raft_e2e", "forward", "fused", OK),
        ("raft_e2e[ConvGRU forward]", "forward", "fused", OK),
        ("raft_e2e", "forward", "eager", OK),
        ("raft_e2e[ConvGRU forward]", "forward", "eager", OK),
    ]
    for records in (forward, train):
        assert records[0].detail == "2 of 2 cells replaced"
        whole, cells = records[0].median, records[1].median
        assert whole is not None and cells is not None and 0 < cells < whole
    assert set(forward[0].errors) == {"flow"} and set(train[0].errors) == {"flow", "gradients"}
    assert not forward[2].is_ours and forward[0].is_ours


def test_no_time_for_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that comes after the verification."""
    fuse = models.fuse

    def then_wrong(*args: object) -> object:
        report = fuse(*args)  # type: ignore[arg-type]
        cell = functional.conv_gru_cell
        monkeypatch.setattr(functional, "conv_gru_cell", lambda *a, **k: cell(*a, **k) + 0.01)
        return report

    monkeypatch.setattr(models, "fuse", then_wrong)
    (records,) = models.measure_model("raft_e2e", Settings(modes=("forward",), protocol=SETTINGS.protocol))
    assert records[0].status == WRONG
    assert "flow is off by" in records[0].note
    assert all(record.median is None for record in records)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> torch.nn.Module:
        raise ModuleNotFoundError("torchvision is not installed")

    monkeypatch.setattr(models, "raft", missing)
    (records,) = models.measure_model("raft_e2e", Settings(modes=("forward",), protocol=SETTINGS.protocol))
    assert [(r.status, r.note) for r in records] == [(NOT_APPLICABLE, "torchvision is not installed")]


def test_trouble_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> torch.nn.Module:
        raise RuntimeError("out of paper\nand ink")

    monkeypatch.setattr(models, "raft", broken)
    (records,) = models.measure_model("raft_e2e", Settings(modes=("forward",), protocol=SETTINGS.protocol))
    assert [(r.status, r.note) for r in records] == [(FAILED, "RuntimeError: out of paper")]


def test_frames_are_the_same_every_time() -> None:
    first, second = models.frames(torch.device("cpu"), torch.float32, 0)
    again, _ = models.frames(torch.device("cpu"), torch.float32, 0)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.shape == (1, 3, 128, 128) and first.abs().max() <= 1
    # the second is the first, moved
    assert torch.equal(first[..., 3:, 5:], second[..., :-3, :-5])


def test_published_raft_is_seeded() -> None:
    a, b = (published.raft(large=False, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
