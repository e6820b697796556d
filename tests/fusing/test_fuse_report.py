"""What fuse says, refuses to be asked, and refuses to keep."""

import json
from dataclasses import replace

import pytest
import torch
from cell_styles import CELLS, OTHERS, C, H, HiddenTermsAbsent, K, Lstm, N, RaftOrder, W
from torch import nn

import convgru_fused
from convgru_fused import cli, fuse, unfuse
from convgru_fused.fusing import Report, search, trial, verification
from convgru_fused.fusing.trial import Example


def both():
    torch.manual_seed(0)
    model = nn.ModuleDict({"gru": RaftOrder(), "lstm": Lstm()})
    return model


def test_text():
    lines = str(fuse(both())).splitlines()
    assert [line.split()[0] for line in lines] == ["module", "gru", "lstm"]
    assert "replaced" in lines[1] and "gru-rcn, 6->8, 3x3" in lines[1]
    assert lines[2].endswith("left alone  no state that a sigmoid gate blends with something")


def test_data():
    report = fuse(both())
    data = json.loads(json.dumps(report.as_dict()))
    assert [r["path"] for r in data["replaced"]] == ["gru"]
    assert data["replaced"][0]["max_error"] < 1e-14
    assert data["replaced"][0]["speedup"] is None
    assert data["skipped"] == [
        {
            "path": "lstm",
            "class_name": "Lstm",
            "recognised": "",
            "reason": "no state that a sigmoid gate blends with something",
            "max_error": None,
            "speedup": None,
        }
    ]


def test_benchmark():
    report = fuse(RaftOrder(), benchmark=True)
    assert report.replaced[0].speedup > 0
    assert "x" in str(report).splitlines()[1].split()[-1]


def test_without_verification():
    report = fuse(RaftOrder(), verify=False)
    assert report.replaced[0].max_error is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3,), "model: expected a torch.nn.Module, got int"),
        ((nn.Identity(), 3), "example_inputs: expected a tuple of arguments, got int"),
        ((nn.Identity(), None, 3), "example_kwargs: expected a dict, got int"),
    ],
)
def test_arguments_of_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        fuse(*arguments)


def test_unfuse_of_the_wrong_type():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        unfuse("model")


def test_example_kwargs():
    module, (h, x) = CELLS["RaftOrder"]()
    assert fuse(module, example_kwargs={"x": x, "h": h}).replaced
    assert fuse(module, (h,), {"x": x}).replaced


def test_a_model_that_raises_is_reported():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    report = fuse(model, torch.randn(1, 7, 8, 8))  # seven channels for three
    assert isinstance(report, Report) and not report.replaced


def test_a_cell_that_raises_in_this_call_is_tried_with_others():
    class NeedsState(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = RaftOrder()

        def forward(self, x, h=None):
            return self.cell(h, x)

    model = NeedsState()
    h, x = CELLS["RaftOrder"]()[1]
    report = fuse(model, (x, None))
    assert [r.path for r in report.replaced] == ["cell"] and not report.skipped
    assert model(x, h).shape == h.shape


def test_a_cell_seen_without_a_state_only():
    """Its formula then is a gated convolution's; with a state it is a ConvGRU."""

    cell, x = HiddenTermsAbsent(), torch.randn(2, C, 5, 5)
    expected = cell(x)
    assert fuse(cell, (x,)).replaced
    torch.testing.assert_close(cell(x), expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_be_copied_is_reported():
    class Stubborn(RaftOrder):
        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

    module, args = Stubborn(), CELLS["RaftOrder"]()[1]
    for report in (fuse(module, args), fuse(module)):
        (record,) = report.skipped
        assert record.reason == "cannot be copied: RuntimeError: one of a kind"


# Verification: formulas that are wrong must not pass.


def wrong(cell, what):
    reset, update, candidate = cell.gates
    if what == "gates exchanged":
        return replace(cell, gates=(update, reset, candidate))
    if what == "update negated":
        hidden = tuple(replace(w, factor=-w.factor) for w in update.hidden)
        return replace(cell, gates=(reset, replace(update, hidden=hidden), candidate))
    if what == "bias forgotten":
        return replace(cell, gates=(reset, update, replace(candidate, biases=())))
    if what == "bias doubled":
        biases = tuple(replace(b, factor=2 * b.factor) for b in candidate.biases)
        return replace(cell, gates=(reset, update, replace(candidate, biases=biases)))
    return replace(cell, variant="cudnn")


@pytest.mark.parametrize(
    "what", ["gates exchanged", "update negated", "bias forgotten", "bias doubled", "another variant"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_formula_is_left_alone(monkeypatch, what, dtype):
    recognise = trial.recognise

    def mistaken(*args):
        cell = recognise(*args)
        return None if cell is None else wrong(cell, what)

    monkeypatch.setattr(trial, "recognise", mistaken)
    module, args = CELLS["RaftOrder"]()
    module, args = module.to(dtype), tuple(arg.to(dtype) for arg in args)
    expected = module(*args)
    report = fuse(module, args)
    assert not report.replaced
    assert "verification: " in report.skipped[0].reason
    assert torch.equal(module(*args), expected)
    # and the test would notice if it were not
    assert fuse(module, args, verify=False).replaced
    assert not torch.allclose(module(*args), expected, rtol=1e-3, atol=1e-3)


class OnlyFloat32(RaftOrder):
    def forward(self, h, x):
        if x.dtype != torch.float32:
            raise TypeError
        return super().forward(h, x)


@pytest.mark.parametrize("what", [None, "bias doubled", "gates exchanged"])
def test_code_that_needs_float32_is_verified_in_it(monkeypatch, what):
    recognise = trial.recognise

    def mistaken(*args):
        cell = recognise(*args)
        return cell if cell is None or what is None else wrong(cell, what)

    monkeypatch.setattr(trial, "recognise", mistaken)
    report = fuse(OnlyFloat32(), (torch.randn(N, K, H, W), torch.randn(N, C, H, W)))
    assert bool(report.replaced) == (what is None)
    assert what is None or "verification: " in report.skipped[0].reason


def test_a_wrong_gradient_is_left_alone(monkeypatch):
    """The right outputs are not enough."""
    module, args = CELLS["RaftOrder"]()
    formula = trial.learn(module, Example.of(args, {}))
    cell = convgru_fused.functional.conv_gru_cell

    def detached(input, *others, **options):
        return cell(input.detach(), *others, **options)

    monkeypatch.setattr(convgru_fused.functional, "conv_gru_cell", detached)
    with pytest.raises(trial.Refused, match=r"gradient of args\[1\]"):
        verification.verify(module, Example.of(args, {}), formula)


def test_tolerances_are_obeyed():
    module, args = CELLS["RaftOrder"]()
    assert not fuse(module, args, atol=0, rtol=0).replaced
    assert fuse(module, args, atol=1e-12, rtol=0).replaced


def test_tolerance_lies_between_rounding_and_mistakes():
    """RTOL of float64: at least a thousand times what rounding was seen to do, and far below a wrong bias."""
    worst = 0.0
    for make in CELLS.values():
        module, args = make()
        formula = trial.learn(module, Example.of(args, {}))
        worst = max(worst, verification.verify(module, Example.of(args, {}), formula))
    assert worst < verification.RTOL[torch.float64] / 1e3


# The command.


def model_and_inputs():
    model, args = CELLS["RaftOrder"]()
    return model, args


def nothing():
    return nn.Identity()


def number():
    return 3


def command(*args):
    return cli.main(["fuse", *args])


def test_command(capsys):
    assert command(f"{__name__}:model_and_inputs") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("(the model)  RaftOrder  replaced")


def test_command_json(capsys):
    assert command(f"{__name__}:model_and_inputs", "--json", "--no-verify") == 0
    assert json.loads(capsys.readouterr().out)["replaced"][0]["class_name"] == "RaftOrder"


def test_command_finds_nothing(capsys):
    assert command(f"{__name__}:nothing") == 1
    assert capsys.readouterr().out == "Identity: no ConvGRU found, nothing changed\n"


@pytest.mark.parametrize(
    "factory, message",
    [
        ("nowhere", "expected module:factory, got 'nowhere'"),
        ("no_such_module_at_all:f", "No module named 'no_such_module_at_all'"),
        (f"{__name__}:no_such_factory", "no_such_factory"),
        (f"{__name__}:number", "factory: expected a model"),
        ("math:pi", "expected something to call, got float"),
    ],
)
def test_command_refuses(capsys, factory, message):
    assert command(factory) == 2
    assert message in capsys.readouterr().err


def test_search_tries_innermost_first():
    assert search._depth("a.b.c") > search._depth("a") > search._depth("")
    assert search._is_below("a.b", "a") and search._is_below("a[0]", "a") and not search._is_below("ab", "a")


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_alone_without_examples(name):
    assert not fuse(OTHERS[name]()[0]).replaced
