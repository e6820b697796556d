"""What makes a kind of call, and what is verified of a new one."""

import copy

import torch
from cell_styles import CELLS, C, H, K, N, RaftOrder, StateNone, W
from test_fuse_report import wrong
from torch import nn

from convgru_fused import fuse
from convgru_fused.fusing import trial, verification
from convgru_fused.fusing.trial import Example


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_what_is_new_is_verified_when_it_is_met(monkeypatch):
    cell = StateNone().double()
    x, h = double(N, C, H, W), double(N, K, H, W)
    expected = cell(x)
    assert fuse(cell, (x, h)).replaced
    recognise = trial.recognise

    def mistaken(*args):
        found = recognise(*args)
        return None if found is None else wrong(found, "bias doubled")

    monkeypatch.setattr(trial, "recognise", mistaken)
    torch.testing.assert_close(cell(x), expected, rtol=1e-12, atol=1e-12)


def test_speedup_is_the_originals_time_over_the_fused_one(monkeypatch):
    from convgru_fused.bench import timing

    def interleaved(contenders, *args):
        return {name: timing.Spread(3.0 if name == "original" else 2.0, 1, 1, 1) for name in contenders}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    assert fuse(RaftOrder(), benchmark=True).replaced[0].speedup == 1.5


def test_what_a_module_remembers_and_its_buffers_are_compared():
    for name, expected in (("StateKept", "self.hidden"), ("SpectralNorm", "_u")):
        module, args = CELLS[name]()
        found = verification._outcome(module, Example.of(args, {}), 0, None)
        assert any(key.endswith(expected) for key in found), list(found)


class ByMode(RaftOrder):
    def forward(self, h, x):
        y = super().forward(h, x)
        return y * 2 if torch.is_grad_enabled() else y


def test_gradients_are_part_of_a_kind_of_call():
    cell = ByMode().double()
    h, x = double(N, K, H, W), double(N, C, H, W)
    with torch.no_grad():
        without = cell(h, x)
    expected = cell(h, x)
    assert fuse(cell, (h, x)).replaced
    with torch.no_grad():
        torch.testing.assert_close(cell(h, x), without, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell(h, x), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(cell(h, x), without, rtol=1e-12, atol=1e-12)


class ByAttribute(RaftOrder):
    hidden = None

    def forward(self, x, scale=1.0):
        h = self.hidden
        if h is None:
            h = x.new_zeros(x.size(0), K, *x.shape[-2:])
        elif h.size(-1) == 1:
            h = h.expand(-1, -1, *x.shape[-2:])
        self.hidden = super().forward(h, x)
        return self.hidden


def test_what_a_module_remembers_is_part_of_a_kind_of_call():
    plain = ByAttribute().double()
    fused = copy.deepcopy(plain)
    x = double(N, C, H, W)
    fuse(fused, x)
    for hidden in (None, double(N, K, H, W), double(N, K, 1, 1), None, double(N, K, H, W)):
        plain.hidden = fused.hidden = hidden
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fused.hidden, plain.hidden, rtol=1e-12, atol=1e-12)


class Deletes(RaftOrder):
    def __init__(self):
        super().__init__()
        self.once = 1

    def forward(self, h, x):
        if hasattr(self, "once"):
            del self.once
        return super().forward(h, x)


def test_a_forward_that_deletes_an_attribute():
    (refused,) = fuse(Deletes(), (torch.randn(N, K, H, W), torch.randn(N, C, H, W))).skipped
    assert refused.reason == "its forward deletes the attribute 'once'"


class BySize(RaftOrder):
    def forward(self, h, x):
        y = super().forward(h, x)
        return y * 2 if x.shape[-1] > W else y


def test_compiled_for_a_size_that_is_another_formula():
    cell = BySize().double()
    plain = copy.deepcopy(cell)
    assert fuse(cell, (double(N, K, H, W), double(N, C, H, W))).replaced
    compiled = torch.compile(cell, backend="eager")
    for width in (W, W + 1):
        h, x = double(N, K, H, width), double(N, C, H, width)
        torch.testing.assert_close(compiled(h, x), plain(h, x), rtol=1e-12, atol=1e-12)


class ConstantBesideAMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Conv2d(K, 3 * K, 3, padding=1)

    def forward(self, gates, h):
        (r_x, z_x, n_x), (r_h, z_h, n_h) = gates.chunk(3, 1), self.hidden(h).chunk(3, 1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + 0.5 + r * n_h)
        return (1 - z) * n + z * h


def test_a_number_beside_a_map():
    cell = ConstantBesideAMap().double()
    gates, h = double(N, 3 * K, H, W), double(N, K, H, W)
    expected = cell(gates, h)
    report = fuse(cell, (gates, h))
    assert report.replaced, str(report)
    torch.testing.assert_close(cell(gates, h), expected, rtol=1e-12, atol=1e-12)
