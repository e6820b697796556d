"""What results say: the best peer of a row, speed-ups, their means, linearity in T, and one run against
another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .results import OK, Document, Record
from .stats import LinearFit, geometric_mean, linear_fit

YARDSTICK = "eager"


def by_row(records: Iterable[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    """Records by (workload, mode) and contender, in their order."""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record.workload, record.mode), {})[record.contender] = record
    return rows


def seconds(record: Record | None) -> float | None:
    """The median time, if there is one."""
    return record.median if record is not None and record.status == OK else None


def best_peer(row: dict[str, Record]) -> Record | None:
    """The fastest of the peers that gave the right result."""
    timed = [record for record in row.values() if not record.is_ours and seconds(record) is not None]
    return min(timed, key=lambda record: record.median or 0.0, default=None)


@dataclass(frozen=True)
class Comparison:
    """One of ours in one row, next to eager and to the best peer; either may be missing."""

    ours: Record
    eager: Record | None
    best: Record | None

    @property
    def over_eager(self) -> float | None:
        """How many times faster than eager."""
        return _ratio(seconds(self.eager), seconds(self.ours))

    @property
    def over_best(self) -> float | None:
        """How many times faster than the best peer."""
        return _ratio(seconds(self.best), seconds(self.ours))

    @property
    def kept_ratio(self) -> float | None:
        """Memory kept for backward, as a part of eager's; on a GPU the peak of the whole call."""
        if self.eager is None:
            return None
        kept = _ratio(self.ours.kept_bytes, self.eager.kept_bytes)
        return kept if kept is not None else _ratio(self.ours.peak_bytes, self.eager.peak_bytes)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """A comparison for each of ours in each row that has a time."""
    return [
        Comparison(ours, row.get(YARDSTICK), best_peer(row))
        for row in by_row(records).values()
        for ours in row.values()
        if ours.is_ours and seconds(ours) is not None
    ]


@dataclass(frozen=True)
class Mean:
    """Geometric means of one of ours over all rows of a mode; None where no row has the peer."""

    contender: str
    mode: str
    rows: int
    over_eager: float | None
    over_best: float | None
    slowest: Comparison | None  # the row with the smallest gain over the best peer


def means(found: Sequence[Comparison]) -> list[Mean]:
    """The means of every pair of contender and mode, in order of appearance."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in found:
        groups.setdefault((comparison.ours.contender, comparison.ours.mode), []).append(comparison)
    return [
        Mean(
            contender,
            mode,
            len(group),
            _mean([c.over_eager for c in group]),
            _mean([c.over_best for c in group]),
            min(
                (c for c in group if c.over_best is not None), key=lambda c: c.over_best or 0.0, default=None
            ),
        )
        for (contender, mode), group in groups.items()
    ]


def _mean(ratios: Sequence[float | None]) -> float | None:
    known = [ratio for ratio in ratios if ratio is not None]
    return geometric_mean(known) if known else None


@dataclass(frozen=True)
class LengthCurve:
    """The cost of one contender against T: (T, median seconds) in order of T, and the line through it."""

    contender: str
    mode: str
    points: tuple[tuple[int, float], ...]
    fit: LinearFit | None  # None for fewer than three T


def length_curves(document: Document) -> list[LengthCurve]:
    """One curve for each contender and mode that was timed at some T."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for record in document.lengths:
        median = seconds(record)
        if median is not None:
            steps = document.workloads[record.workload]["T"]
            points.setdefault((record.contender, record.mode), []).append((steps, median))
    return [
        LengthCurve(contender, mode, tuple(sorted(found)), linear_fit(found) if len(found) > 2 else None)
        for (contender, mode), found in points.items()
    ]


@dataclass(frozen=True)
class Change:
    """The same contender and row in two runs. The verdict is "faster" or "slower" only if the two spreads
    (20th to 80th percentile) do not overlap, else "same"; "only in A" or "only in B" if just one of them has
    a time."""

    key: tuple[str, str, str]  # workload, mode, contender
    a: Record | None
    b: Record | None

    @property
    def ratio(self) -> float | None:
        """Time of B as a multiple of A's."""
        return _ratio(seconds(self.b), seconds(self.a))

    @property
    def verdict(self) -> str:
        a, b = self.a, self.b
        if a is None or seconds(a) is None:
            return "only in B"
        if b is None or seconds(b) is None:
            return "only in A"
        assert a.p20 is not None and a.p80 is not None and b.p20 is not None and b.p80 is not None
        if b.p80 < a.p20:
            return "faster"
        return "slower" if b.p20 > a.p80 else "same"


def compare(a: Document, b: Document) -> list[Change]:
    """Everything that has a time in at least one of two runs: rows, the cost against T, models, the
    video's."""
    in_a, in_b = ({r.key: r for r in d.records() if seconds(r) is not None} for d in (a, b))
    return [Change(key, in_a.get(key), in_b.get(key)) for key in {**in_a, **in_b}]


def differences(a: Document, b: Document) -> list[str]:
    """What two runs do not have in common and that makes their times incomparable or explains them."""
    found = []
    for part in ("machine", "settings"):
        in_a, in_b = getattr(a, part), getattr(b, part)
        for name in {**in_a, **in_b}:
            if in_a.get(name) != in_b.get(name):
                found.append(f"{name}: {in_a.get(name)} in A, {in_b.get(name)} in B")
    return found
