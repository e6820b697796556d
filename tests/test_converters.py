"""Cells as people write them, converted: every order of channels and gates, both meanings of z."""

import re
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from convgru_fused import ConvGRU, ConvGRUCell
from convgru_fused.testing import assert_close_to_reference

C, K = 3, 4


class HandWrittenCell(nn.Module):
    """A cell in each of the ways in which public code writes it."""

    def __init__(self, *, joint, gate_order, concat, update_gate, biased, kernel_size=3):
        super().__init__()
        padding = tuple(k // 2 for k in kernel_size) if isinstance(kernel_size, tuple) else kernel_size // 2

        def conv(channels, name):
            return nn.Conv2d(C + K, channels, kernel_size, padding=padding, bias=name in biased).double()

        self.candidate = conv(K, "candidate")
        if joint:
            self.gates = conv(2 * K, "gates")
        else:
            self.reset, self.update = conv(K, "reset"), conv(K, "update")
        self.joint, self.gate_order, self.concat, self.update_gate = joint, gate_order, concat, update_gate

    def join(self, x, h):
        return torch.cat((x, h) if self.concat == "xh" else (h, x), dim=1)

    def forward(self, x, h):
        xh = self.join(x, h)
        if self.joint:
            first, second = torch.sigmoid(self.gates(xh)).chunk(2, dim=1)
            r, z = (first, second) if self.gate_order == "rz" else (second, first)
        else:
            r, z = torch.sigmoid(self.reset(xh)), torch.sigmoid(self.update(xh))
        n = torch.tanh(self.candidate(self.join(x, r * h)))
        return (1 - z) * h + z * n if self.update_gate == "new" else z * h + (1 - z) * n

    def converted(self):
        convolutions = dict(self.named_children())
        order = dict(gate_order=self.gate_order) if self.joint else {}
        return ConvGRUCell.from_convs(
            **convolutions, **order, concat=self.concat, update_gate=self.update_gate
        )


ALL = ("candidate", "gates", "reset", "update")


@pytest.mark.parametrize(
    "biased", [ALL, (), ("candidate",), ("gates", "update")], ids=lambda names: "+".join(names) or "none"
)
@pytest.mark.parametrize("update_gate", ["new", "old"])
@pytest.mark.parametrize("concat", ["xh", "hx"])
@pytest.mark.parametrize("gates", ["rz", "zr", "separate"])
def test_from_convs(backend, gates, concat, update_gate, biased):
    cell = HandWrittenCell(
        joint=gates != "separate", gate_order=gates, concat=concat, update_gate=update_gate, biased=biased
    )
    converted = cell.converted()
    x, h = torch.randn(2, C, 5, 7, dtype=torch.float64), torch.randn(2, K, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(3)  # so that the gates are far from 1/2, where conventions would hardly differ
        assert (
            converted(x, h).sub(cell(x, h)).abs().max() > 1e-2
        )  # copies: what was converted has not changed
    assert_close_to_reference(cell.converted()(x, h), cell(x, h))


@pytest.mark.parametrize("kernel_size", [1, 5, (1, 5), (5, 1)], ids=str)
def test_from_convs_keeps_the_kernel(backend, kernel_size):
    cell = HandWrittenCell(
        joint=True, gate_order="zr", concat="hx", update_gate="old", biased=ALL, kernel_size=kernel_size
    )
    x, h = torch.randn(2, C, 5, 7, dtype=torch.float64), torch.randn(2, K, 5, 7, dtype=torch.float64)
    assert_close_to_reference(cell.converted()(x, h), cell(x, h))


def test_conventions_that_are_mistaken_give_something_else(backend):
    """The test of the tests: of all ways to read a cell only its own gives its values."""
    cell = HandWrittenCell(joint=True, gate_order="rz", concat="xh", update_gate="new", biased=ALL)
    x, h = torch.randn(2, C, 5, 7, dtype=torch.float64), torch.randn(2, K, 5, 7, dtype=torch.float64)
    for gate_order, concat, update_gate in product(("rz", "zr"), ("xh", "hx"), ("new", "old")):
        converted = ConvGRUCell.from_convs(
            candidate=cell.candidate,
            gates=cell.gates,
            gate_order=gate_order,
            concat=concat,
            update_gate=update_gate,
        )
        if (gate_order, concat, update_gate) == ("rz", "xh", "new"):
            assert_close_to_reference(converted(x, h), cell(x, h))
        else:
            with pytest.raises(AssertionError):
                assert_close_to_reference(converted(x, h), cell(x, h))


def test_from_convs_has_a_bias_only_where_there_is_one():
    none = HandWrittenCell(joint=True, gate_order="rz", concat="xh", update_gate="new", biased=()).converted()
    some = HandWrittenCell(
        joint=True, gate_order="rz", concat="xh", update_gate="new", biased=("gates",)
    ).converted()
    assert [name for name, _ in none.named_parameters()] == ["weight_ih", "weight_hh"]
    assert not some.bias_hh.any()
    assert some.bias_ih[: 2 * K].all() and not some.bias_ih[2 * K :].any()


def test_from_convs_takes_padding_by_name_and_the_weights_dtype():
    candidate = nn.Conv2d(C + K, K, 3, padding="same").bfloat16()
    gates = nn.Conv2d(C + K, 2 * K, 3, padding="same").bfloat16()
    cell = ConvGRUCell.from_convs(
        candidate=candidate, gates=gates, gate_order="rz", concat="xh", update_gate="new"
    )
    assert (cell.input_size, cell.hidden_size, cell.kernel_size) == (C, K, (3, 3))
    assert cell.weight_ih.dtype == torch.bfloat16


def convs(**changes):
    """Valid arguments of from_convs, changed."""
    valid = dict(
        candidate=nn.Conv2d(C + K, K, 3, padding=1),
        gates=nn.Conv2d(C + K, 2 * K, 3, padding=1),
        gate_order="rz",
        concat="xh",
        update_gate="new",
    )
    return {**valid, **changes}


class Subclass(nn.Conv2d):
    """May compute something else."""


REFUSED = [
    (dict(concat="x+h"), ValueError, "concat: expected 'xh' or 'hx', got 'x+h'"),
    (dict(update_gate="z"), ValueError, "update_gate: expected 'new' or 'old', got 'z'"),
    (dict(gate_order=None), ValueError, "gate_order: expected 'rz' or 'zr' with gates, got None"),
    (dict(gate_order="rzn"), ValueError, "gate_order: expected 'rz' or 'zr' with gates, got 'rzn'"),
    (dict(gates=nn.Linear(2, 2)), TypeError, "gates: expected a torch.nn.Conv2d, got Linea"),
    (dict(gates=Subclass(C + K, 2 * K, 3)), TypeError, "gates: expected a torch.nn.Conv2d, got Subclass"),
    (
        dict(gates=nn.Conv2d(C + K, K, 3, padding=1)),
        ValueError,
        f"gates: expected out_channels={2 * K}, got {K}",
    ),
    (
        dict(gates=nn.Conv2d(C, 2 * K, 3, padding=1)),
        ValueError,
        f"gates: expected in_channels={C + K}, got {C}",
    ),
    (
        dict(gates=nn.Conv2d(C + K, 2 * K, 5, padding=2)),
        ValueError,
        "gates: expected kernel_size=(3, 3), got (5, 5)",
    ),
    (
        dict(gates=nn.Conv2d(C + K, 2 * K, 3)),
        ValueError,
        "gates: expected padding=(1, 1) or 'same', got (0, 0)",
    ),
    (
        dict(candidate=nn.Conv2d(C + K, K, 3, stride=2, padding=1)),
        ValueError,
        "candidate: expected stride=(1, 1), got (2, 2)",
    ),
    (
        dict(candidate=nn.Conv2d(C + K, K, 3, dilation=2, padding=1)),
        ValueError,
        "candidate: expected dilation=(1, 1), got (2, 2)",
    ),
    (
        dict(candidate=nn.Conv2d(6, 3, 3, groups=3, padding=1)),
        ValueError,
        "candidate: expected groups=1, got 3",
    ),
    (
        dict(candidate=nn.Conv2d(C + K, K, 3, padding=1, padding_mode="replicate")),
        ValueError,
        "candidate: expected padding_mode='zeros', got 'replicate'",
    ),
    (
        dict(candidate=nn.Conv2d(C + K, K, 2, padding=1), gates=nn.Conv2d(C + K, 2 * K, 2, padding=1)),
        ValueError,
        "candidate: expected an odd kernel_size, got (2, 2)",
    ),
    (dict(candidate=nn.ReLU()), TypeError, "candidate: expected a torch.nn.Conv2d, got ReLU"),
    (
        dict(gates=nn.Conv2d(C + K, 2 * K, 3, padding=1).double()),
        ValueError,
        "gates: expected dtype=torch.float32, got torch.float64",
    ),
    (
        dict(gates=nn.Conv2d(C + K, 2 * K, 3, padding=1, device="meta")),
        ValueError,
        "gates: expected device=device(type='cpu'), got device(type='meta')",
    ),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED, ids=[words[:40] for _, _, words in REFUSED])
def test_from_convs_refuses_what_is_no_such_cell(changes, error, words):
    ConvGRUCell.from_convs(**convs())
    with pytest.raises(error, match=re.escape(words)):
        ConvGRUCell.from_convs(**convs(**changes))


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (("gates", "reset", "update"), "gates and reset and update"),
        (("gates", "reset"), "gates and reset"),
        (("update",), "update"),
        ((), "none"),
    ],
    ids=str,
)
def test_from_convs_refuses_gates_given_twice_or_half(given, got):
    joint, half = (nn.Conv2d(C + K, channels, 3, padding=1) for channels in (2 * K, K))
    changes = {"gates": None} | {name: joint if name == "gates" else half for name in given}
    words = f"gates: expected either gates, or reset and update; got {got}"
    with pytest.raises(ValueError, match=f"^{words}$"):
        ConvGRUCell.from_convs(**convs(**changes))


def test_from_convs_refuses_a_candidate_without_input():
    words = f"candidate: expected more in_channels than its {K} out_channels, got {K}"
    with pytest.raises(ValueError, match=words):
        ConvGRUCell.from_convs(**convs(candidate=nn.Conv2d(K, K, 3, padding=1)))


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_from_cell_refuses_more_than_a_layer(options):
    with pytest.raises(ValueError, match="options: expected one layer and direction, got num_layers="):
        ConvGRU.from_cell(ConvGRUCell(C, K), **options)


def test_from_cell_keeps_the_mode():
    assert not ConvGRU.from_cell(ConvGRUCell(C, K).eval()).training


def test_from_parametrised_modules():
    """What is copied is what the module computes with."""
    cell, gru = ConvGRUCell(C, K), nn.GRU(C, K)
    parametrizations.weight_norm(cell, "weight_hh")
    parametrizations.weight_norm(gru, "weight_hh_l0")
    with torch.no_grad():
        cell.parametrizations.weight_hh.original0.mul_(2)
        gru.parametrizations.weight_hh_l0.original0.mul_(2)
    assert torch.equal(ConvGRU.from_cell(cell).weight_hh_l0, cell.weight_hh)
    assert torch.equal(ConvGRU.from_gru(gru).weight_hh_l0[..., 0, 0], gru.weight_hh_l0)


def test_from_cell(backend):
    cell = ConvGRUCell(C, K, (1, 5), bias=False, variant="cudnn", dtype=torch.float64)
    conv = ConvGRU.from_cell(cell, batch_first=True, recompute=True)
    assert (conv.kernel_size, conv.bias, conv.variant) == ((1, 5), False, "cudnn")
    assert conv.batch_first and conv.recompute
    x = torch.randn(2, 4, C, 5, 7, dtype=torch.float64)
    h = torch.zeros(2, K, 5, 7, dtype=torch.float64)
    output, h_n = conv(x)
    for t in range(4):
        h = cell(x[:, t], h)
        assert_close_to_reference(output[:, t], h)
    assert_close_to_reference(h_n[0], h)
    with torch.no_grad():
        cell.weight_hh.zero_()
    assert conv.weight_hh_l0.any()  # a copy


@pytest.mark.parametrize(("convert", "argument"), [(ConvGRU.from_gru, "gru"), (ConvGRU.from_cell, "cell")])
def test_converters_refuse_other_modules(convert, argument):
    with pytest.raises(TypeError, match=f"{argument}: expected a .*, got LSTM"):
        convert(nn.LSTM(2, 2))
