from __future__ import annotations

import pytest

from convgru_fused.bench.stats import geometric_mean, linear_fit, percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (20, 1.8), (50, 3.0), (80, 4.2), (100, 5.0)], ids=str
)
def test_percentile(percent: float, expected: float) -> None:
    assert percentile([4, 1, 5, 3, 2], percent) == pytest.approx(expected)


def test_percentile_of_one_and_of_none() -> None:
    assert percentile([7.0], 20) == 7.0
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


def test_geometric_mean() -> None:
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert geometric_mean([2, 32]) == pytest.approx(4)  # 32 counts as 8
    assert geometric_mean([2, 32], cap=100) == pytest.approx(8)
    for wrong in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="expected positive ratios"):
            geometric_mean(wrong)


def test_linear_fit_finds_a_line() -> None:
    fit = linear_fit([(10, 12.0), (20, 22.0), (40, 42.0)])
    assert (fit.constant, fit.per_step) == (pytest.approx(2), pytest.approx(1))
    assert fit.deviation == pytest.approx(0, abs=1e-12)


def test_linear_fit_sees_quadratic_cost() -> None:
    assert linear_fit([(T, T * T) for T in (16, 32, 64, 128)]).deviation > 0.3
    noisy = linear_fit([(16, 16.0), (32, 33.0), (64, 64.0)])
    assert 0 < noisy.deviation < 0.04


def test_linear_fit_needs_three_lengths() -> None:
    with pytest.raises(ValueError, match="at least 3 different T"):
        linear_fit([(1, 1.0), (2, 2.0), (2, 2.1)])
