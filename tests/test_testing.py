"""The judges are judged: comparisons that must fail do fail, and say why."""

import math
import re

import pytest
import torch

from convgru_fused import testing
from convgru_fused.backends import BACKENDS
from convgru_fused.eager import Gradients
from convgru_fused.testing import (
    LAYOUTS,
    SMOOTH_VARIANTS,
    TOLERANCES,
    Errors,
    assert_close_to_reference,
    assert_gradients_close,
    lay_out,
    measure,
    reference,
    run,
    sample_inputs,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def expected():
    """Gradients as they come: those of r a tenth of those of n."""
    gate_size = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64).repeat_interleave(8)
    return Gradients(
        input=torch.randn(4, 2, 3, 5, 9, dtype=torch.float64),
        hx=torch.randn(2, 8, 5, 9, dtype=torch.float64),
        weight_ih=torch.randn(24, 3, 3, 3, dtype=torch.float64) * gate_size.view(-1, 1, 1, 1),
        weight_hh=torch.randn(24, 8, 3, 3, dtype=torch.float64) * gate_size.view(-1, 1, 1, 1),
        bias_ih=torch.randn(24, dtype=torch.float64) * gate_size,
        bias_hh=None,
        gate_bias=None,
    )


def rounded(gradients, dtype):
    """The best that an implementation can do in `dtype`."""
    return Gradients(*(None if g is None else g.to(dtype, copy=True) for g in gradients))


def fails(actual, expected, *words):
    """Asserts that the comparison fails with a message that has all the words; returns it."""
    with pytest.raises(AssertionError) as error:
        assert_gradients_close(actual, expected)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_errors_of_known_numbers():
    errors = measure(torch.tensor([3.0, 4.0, 0.0, 1.0]), torch.tensor([3.0, 4.0, 0.0, 0.0]))
    assert errors.elementwise == 1 / 4
    assert errors.relative_l2 == pytest.approx(1 / 5)
    assert errors.cosine == pytest.approx(1 - 25 / (5 * math.sqrt(26)))
    assert errors.bias == 0  # of four elements one that is off is chance
    many = torch.ones(10_000)
    assert measure(many + 1e-3, many).bias == pytest.approx(1e-3 * (1 - 4 / 100), rel=1e-3)


def test_zero_against_zero_is_no_error_and_anything_else_is():
    zeros = torch.zeros(3)
    assert measure(zeros, zeros) == Errors(0, 0, 0, 0)
    assert measure(torch.tensor([0.0, 1e-30, 0.0]), zeros).elementwise == math.inf
    assert measure(zeros, torch.tensor([0.0, 1e-30, 0.0])).elementwise == 1
    assert measure(torch.empty(0, 3), torch.empty(0, 3)) == Errors(0, 0, 0, 0)


def test_a_small_part_is_judged_by_a_tenth_of_the_whole():
    whole = torch.tensor([1e-6, 10.0, -10.0])
    part = measure(torch.tensor([1.1e-6]), whole[:1], whole=whole)
    assert part.elementwise == pytest.approx(1e-7 / 1.0)
    assert measure(torch.tensor([1.1e-6]), whole[:1]).elementwise == pytest.approx(0.1)


@each_dtype
def test_rounded_values_pass(expected, dtype):
    assert_gradients_close(rounded(expected, dtype), expected)
    assert_close_to_reference(expected.input.to(dtype), expected.input)


@each_dtype
def test_scaled_gradient_fails(expected, dtype):
    actual = rounded(expected, dtype)
    actual.weight_hh.mul_(1 + 3 * max(TOLERANCES[dtype, "gradients"].relative_l2, torch.finfo(dtype).eps))
    fails(actual, expected, "grad weight_hh[r]", "grad weight_hh[n]", "relative_l2")


@each_dtype
@pytest.mark.parametrize("name", ["input", "hx", "weight_ih", "weight_hh", "bias_ih"])
def test_sign_flipped_gradient_fails_by_every_norm(expected, name, dtype):
    actual = rounded(expected, dtype)
    getattr(actual, name).neg_()
    fails(
        actual, expected, f"grad {name}", "elementwise: 2.00e+00", "relative_l2: 2.00e+00", "cosine: 2.00e+00"
    )


@each_dtype
def test_sign_flip_of_one_gate_fails_however_small_the_gate(expected, dtype):
    expected.weight_hh[:8] *= 1e-4  # seen by no norm of the whole in 16 bits, nor by that of the part
    actual = rounded(expected, dtype)
    actual.weight_hh[:8].neg_()
    message = fails(actual, expected, "grad weight_hh[r]", "cosine: 2.00e+00")
    assert "[z]" not in message and "[n]" not in message


@each_dtype
def test_small_bias_fails_by_the_bias_alone(expected, dtype):
    tolerance = TOLERANCES[dtype, "gradients"]
    expected = expected._replace(input=torch.randn(40_000, dtype=torch.float64))
    # In float64, so that it is the bias that is judged and not its rounding to dtype. An offset of a fifth of
    # the L2 bound is twice what the bias may be and too small for every norm, the cosine's square included.
    biased = expected.input + 2 * tolerance.bias
    assert measure(biased, expected.input).exceeded(tolerance) == ["bias"]
    actual = rounded(expected, torch.float64)._replace(input=biased)
    with pytest.raises(
        AssertionError, match=r"grad input: not close.*\n  bias: .*\n  worst element"
    ) as error:
        assert_gradients_close(actual, expected, tolerance=tolerance)
    assert not re.search("elementwise|relative_l2|cosine|beyond", str(error.value))


@each_dtype
def test_one_element_off_fails_and_is_named(expected, dtype):
    actual = rounded(expected, dtype)
    off = 3 * TOLERANCES[dtype, "gradients"].elementwise * expected.weight_ih[16:].abs().max()
    actual.weight_ih[18, 1, 2, 0] += off
    message = fails(
        actual, expected, "grad weight_ih[n]: not close to the reference", "elementwise", "1 of 216"
    )
    wrong = expected.weight_ih[18, 1, 2, 0].item()
    assert (
        f"worst element (2, 1, 2, 0): expected {wrong:.9g}" in message
    )  # within n, which starts at channel 16
    assert f"first element (2, 1, 2, 0): expected {wrong:.9g}" in message


def test_first_and_worst_element_are_told_apart(expected):
    actual = expected.input.clone()
    actual[1, 0, 2, 3, 4] += 1
    actual[3, 1, 0, 0, 8] -= 2
    with pytest.raises(AssertionError) as error:
        assert_close_to_reference(actual, expected.input, "states")
    assert "states: not close" in str(error.value)
    assert "2 of 1080 elements beyond the elementwise bound" in str(error.value)
    assert "first element (1, 0, 2, 3, 4)" in str(error.value)
    assert "worst element (3, 1, 0, 0, 8)" in str(error.value)


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_fail(expected, value, dtype):
    actual = rounded(expected, dtype)
    actual.hx[1, 2, 3, 4] = value
    fails(actual, expected, "grad hx", "elementwise", "relative_l2", "cosine", "bias", "(1, 2, 3, 4)")


def test_missing_superfluous_and_misshapen_gradients_fail(expected):
    fails(expected._replace(hx=None), expected, "grad hx: expected a gradient, got None")
    fails(expected, expected._replace(hx=None), "grad hx: expected None, got a gradient")
    shape_words = "grad bias_ih: expected shape (24,), got (8,)"
    fails(expected._replace(bias_ih=expected.bias_ih[:8]), expected, shape_words)
    mapping = {"weight_ih_l0": expected.weight_ih}
    fails({}, mapping, "expected those of weight_ih_l0, got those of ")
    fails({"weight_ih_l0": -expected.weight_ih}, mapping, "grad weight_ih_l0[z]")


def test_all_failures_are_listed(expected):
    actual = rounded(expected, torch.float32)
    actual.input.neg_()
    actual.bias_ih[:8].neg_()
    fails(actual, expected, "grad input", "grad bias_ih[r]")


def test_a_tolerance_of_ones_own_overrides_the_table(expected):
    rough = Errors(1, 1, 1, 1)
    assert_close_to_reference(expected.input * 1.5, expected.input, tolerance=rough)
    actual = Gradients(*(None if g is None else 1.5 * g for g in expected))
    assert_gradients_close(actual, expected, tolerance=rough)
    with pytest.raises(AssertionError):
        assert_gradients_close(actual, expected)


def test_the_table_is_complete_and_ordered_by_precision():
    assert TOLERANCES.keys() == {(dtype, q) for dtype in DTYPES for q in ("output", "gradients")}
    for quantity in ("output", "gradients"):
        by_precision = [
            TOLERANCES[dtype, quantity] for dtype in sorted(DTYPES, key=lambda d: torch.finfo(d).eps)
        ]
        for tighter, looser in zip(by_precision, by_precision[1:], strict=False):
            assert not tighter.exceeded(looser)
            assert len(looser.exceeded(tighter)) == 4


def test_samples_cover_what_they_promise():
    samples = list(sample_inputs())
    assert len({sample.name for sample in samples}) == len(samples)
    seen = {
        "size": {(1, 1), (1, 7), (5, 9), (13, 17)} - {(s.H, s.W) for s in samples},
        "kernel": {(1, 1), (3, 3), (1, 5), (5, 1), (3, 5), (7, 7)} - {s.kernel for s in samples},
        "C": {1, 3, 8, 17} - {s.C for s in samples},
        "K": {1, 3, 8, 17} - {s.K for s in samples},
        "layout": set(LAYOUTS) - {s.layout for s in samples},
        "gate_bias": {"", "full", "1x1"} - {s.gate_bias for s in samples},
    }
    assert not any(seen.values()), seen
    for variant in SMOOTH_VARIANTS:
        for reverse in (False, True):
            some = [s for s in samples if (s.variant, s.reverse) == (variant, reverse)]
            assert {(s.input, bool(s.gate_bias)) for s in some} == {
                (True, False),
                (True, True),
                (False, True),
            }
            assert {(s.hx, s.bias) for s in some} == {(h, b) for h in (False, True) for b in (False, True)}
            assert any(s.lengths is not None and 0 in s.lengths for s in some)
    assert [s.name for s in sample_inputs(lambda s: s.T == 5 and s.K == 17)] == [
        s.name for s in samples if s.T == 5 and s.K == 17
    ]


def test_a_sample_makes_the_same_tensors_each_time():
    sample = next(sample_inputs(lambda s: s.name == "everything-cudnn"))
    first, second = (sample.arguments(torch.float32, requires_grad=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) and a is not b
            assert a.requires_grad == a.is_floating_point() and a.is_leaf
    assert torch.equal(sample.grad_output(torch.float32), sample.grad_output(torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_shape_and_values(layout):
    images = torch.randn(4, 2, 3, 5, 9)
    before = images.clone()
    laid_out = lay_out(images, layout)
    assert torch.equal(laid_out, images[:1].expand_as(images) if layout == "expanded" else images)
    laid_out[0].fill_(7)  # a copy: what is written to it is not seen by others
    assert torch.equal(images, before)
    assert (
        laid_out.stride()
        == {
            "contiguous": (270, 135, 45, 9, 1),
            "channels_last": (270, 135, 1, 27, 3),
            "strided": (570, 285, 95, 19, 2),
            "expanded": (0, 135, 45, 9, 1),
        }[layout]
    )


def test_run_refuses_a_backend_that_is_missing(monkeypatch):
    class Missing:
        @staticmethod
        def missing():
            return "not built"

    monkeypatch.setitem(BACKENDS, "cpu", Missing)
    with pytest.raises(ValueError, match="backend 'cpu' is not available: not built"):
        run("cpu", next(sample_inputs()), torch.float32)


def test_reference_is_in_float64_on_the_rounded_values():
    sample = next(sample_inputs(lambda s: s.name == "plain-gru-rcn"))
    output, gradients = reference(sample, torch.bfloat16)
    assert output.dtype == gradients.input.dtype == torch.float64
    exact, _ = reference(sample, torch.float64)
    assert 1e-4 < (output - exact).abs().max() < 1e-1  # the inputs differ by rounding to bfloat16
    assert gradients.hx is None and gradients.gate_bias is None and gradients.weight_ih is not None


def test_command_prints_measured_errors_beside_the_bounds(monkeypatch, capsys):
    monkeypatch.setattr(testing, "_CASES", {"plain": dict(T=2, N=1, C=3, K=3, H=5, W=9, hx=True)})
    testing.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["elementwise", "relative_l2", "cosine", "bias"]
    rows = [line.split() for line in lines[1:]]
    measured = {tuple(row[:2]): [float(x) for x in row[-4:]] for row in rows if row[2] == "cpu"}
    allowed = {tuple(row[:2]): [float(x) for x in row[-4:]] for row in rows if row[2] == "allowed"}
    assert len(measured) == len(allowed) == 2 * len(DTYPES)
    for key, errors in measured.items():
        assert all(error <= bound for error, bound in zip(errors, allowed[key], strict=True)), key
    assert [row[2:4] for row in rows].count(["by", "hand"]) == 2  # float64 only
