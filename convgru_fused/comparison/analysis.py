"""Means over seeds with their intervals, and differences between families."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

from convgru_fused.training.engine import Result

from .document import Document

CONFIDENCE = 0.95

Value = Callable[[Result], float]


@dataclass(frozen=True)
class Side:
    """One of two that are compared: a family, or a layer's classifier of it."""

    family: str
    layer: str | None = None

    def value(self, result: Result) -> float:
        return result.accuracy if self.layer is None else result.layer_accuracies[self.layer]

    def __str__(self) -> str:
        return self.family if self.layer is None else f"{self.family} {self.layer}"


@dataclass(frozen=True)
class Mean:
    """Of one number per seed, with Student's interval; without one where there is a single seed."""

    mean: float
    half_width: float | None
    count: int

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ±{self.half_width:.3f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("mean: expected at least one value, got none")
    count = len(values)
    if count == 1:
        return Mean(values[0], None, 1)
    quantile = student.ppf((1 + CONFIDENCE) / 2, count - 1)
    half_width = float(quantile) * statistics.stdev(values) / math.sqrt(count)
    return Mean(statistics.fmean(values), half_width, count)


class Records:
    """The results of a comparison by task and family."""

    def __init__(self, document: Document) -> None:
        self.plan = document.plan
        self._results: dict[tuple[str, str], dict[int, Result]] = {}
        for result in document.results:
            run = result.run
            self._results.setdefault((run.task, run.family), {})[run.seed] = result
        clips = {run.task: run.clips(1, test=True) for run in document.plan.runs}
        self._chance = {task: 1 / items.num_classes for task, items in clips.items()}
        self._order_blind = {
            task: getattr(items, "order_blind_accuracy", self._chance[task]) for task, items in clips.items()
        }

    def of(self, task: str, family: str) -> list[Result]:
        """Seed by seed; empty if there are none yet."""
        return [result for _, result in sorted(self._results.get((task, family), {}).items())]

    def families(self, task: str) -> list[str]:
        """Those with results, in the plan's order."""
        return [family for family in self.plan.families if self.of(task, family)]

    def chance(self, task: str) -> float:
        return self._chance[task]

    def order_blind(self, task: str) -> float:
        """The most that who is blind to the order of frames can expect."""
        return self._order_blind[task]

    def mean(self, task: str, family: str, value: Value) -> Mean | None:
        """None without a seed."""
        results = self.of(task, family)
        return mean_of([value(result) for result in results]) if results else None

    def difference(self, task: str, a: Side, b: Side) -> Mean | None:
        """a's accuracy less b's, paired by seeds, which share their clips; None without a seed of both."""
        first, second = (self._results.get((task, side.family), {}) for side in (a, b))
        seeds = sorted(first.keys() & second.keys())
        return mean_of([a.value(first[seed]) - b.value(second[seed]) for seed in seeds]) if seeds else None


def accuracy(result: Result) -> float:
    return result.accuracy


def of_layer(name: str) -> Value:
    return lambda result: result.layer_accuracies[name]


def of_test(name: str) -> Value:
    return lambda result: result.further_accuracies[name]
