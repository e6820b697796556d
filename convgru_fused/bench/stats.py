"""The few statistics that benchmark results need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RATIO_CAP = 8.0
"""A larger ratio counts as this in a geometric mean, so that one easy row cannot carry the others."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of some numbers, linear between neighbours. Raises ValueError for no numbers."""
    if not values:
        raise ValueError("percentile: expected at least one value, got none")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def geometric_mean(ratios: Sequence[float], cap: float = RATIO_CAP) -> float:
    """The geometric mean of positive ratios, each counted as at most `cap`. Raises ValueError for no ratios
    or one that is not positive."""
    if not ratios or min(ratios) <= 0:
        raise ValueError(f"geometric mean: expected positive ratios, got {list(ratios)}")
    return math.exp(sum(math.log(min(ratio, cap)) for ratio in ratios) / len(ratios))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))


@dataclass(frozen=True)
class LinearFit:
    """seconds = constant + per_step * T, and the largest distance of a point from that, as a part of the
    fit."""

    constant: float
    per_step: float
    deviation: float

    def at(self, steps: float) -> float:
        return self.constant + self.per_step * steps


def linear_fit(points: Sequence[tuple[int, float]]) -> LinearFit:
    """Fits (T, seconds) by least squares of the relative error, so that short sequences count as much as long
    ones.

    Raises ValueError for fewer than three different T, through which any line would do.
    """
    if len({steps for steps, _ in points}) < 3:
        raise ValueError(f"linear fit: expected at least 3 different T, got {[steps for steps, _ in points]}")
    # Minimise sum((a/t + b*T/t - 1)^2): the normal equations of two unknowns.
    u, v = [1 / seconds for _, seconds in points], [steps / seconds for steps, seconds in points]
    uu, uv, vv = _dot(u, u), _dot(u, v), _dot(v, v)
    determinant = uu * vv - uv * uv
    a, b = (sum(u) * vv - sum(v) * uv) / determinant, (sum(v) * uu - sum(u) * uv) / determinant
    fit = LinearFit(a, b, 0.0)
    deviation = max(abs(seconds - fit.at(steps)) / fit.at(steps) for steps, seconds in points)
    return LinearFit(a, b, deviation)
