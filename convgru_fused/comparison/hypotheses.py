"""What one would expect of the families on the generated tasks, and what the records say about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .analysis import Mean, Records, Side, Value, accuracy

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
FAR = 0.1  # of all clips: a family that is "far above" another is right on so many more
_ERRORS = 3  # standard errors that a share of clips may be from what is expected
_WINDOWS = ("early_fusion", "late_fusion", "slow_fusion", "c3d", "two_stream")
_LOCAL = ("early_fusion", "slow_fusion", "c3d", "two_stream", "grurcn")


@dataclass(frozen=True)
class Check:
    """A statement about numbers, and whether they say so."""

    text: str
    verdict: str  # HOLDS, FAILS or OPEN


@dataclass(frozen=True)
class Finding:
    """A hypothesis and its checks."""

    text: str
    checks: list[Check]

    @property
    def verdict(self) -> str:
        """It holds if every check does."""
        verdicts = {check.verdict for check in self.checks}
        return FAILS if FAILS in verdicts else OPEN if OPEN in verdicts or not verdicts else HOLDS


def findings(records: Records) -> list[Finding]:
    """About the tasks that the plan has; none about videos, of which nothing is known."""
    families = records.plan.families
    tasks = [task for task in records.plan.tasks if task != "videos"]
    if not tasks:
        return []
    found = [
        Finding(
            "Single frames do not settle the class: single_frame is at chance, and where the frames in any "
            "order say something, not above that",
            [
                _at_chance(records, task, "single_frame")
                if records.order_blind(task) == records.chance(task)
                else _blind(records, task, "single_frame", accuracy)
                for task in tasks
            ],
        ),
        Finding(
            "The order of frames does: with shuffled frames no family is above one that is blind to order",
            [
                _blind(records, task, family, lambda result: result.shuffled_accuracy)
                for task in tasks
                for family in families
            ],
        ),
        Finding(
            "Backwards, every family is as good: on the opposite direction, the opposite order",
            [_as_good_backwards(records, task, family) for task in tasks for family in families],
        ),
    ]
    if "dots" in tasks:
        found += [
            Finding(
                "dots (local motion): 3D convolution, frames stacked, flow and GRU-RCN are far above an LSTM "
                "on pooled features",
                [_above(records, "dots", Side(family), Side("lrcn"), FAR) for family in _LOCAL],
            ),
            Finding(
                "dots: GRU-RCN's lowest layer alone is far above an LSTM on pooled features, and above its "
                "own highest",
                [
                    _above(records, "dots", Side("grurcn", "pool1"), Side("lrcn"), FAR),
                    _above(records, "dots", Side("grurcn", "pool1"), Side("grurcn", "fc7")),
                ],
            ),
            Finding(
                "dots: two frames too far apart to share dots do not help: late_fusion is at chance",
                [_at_chance(records, "dots", "late_fusion")],
            ),
        ]
    if "gaps" in tasks:
        found += [
            Finding(
                "gaps (order over a long time): recurrences are above what is blind to order",
                [
                    _judged(
                        f"{family} - {records.order_blind('gaps'):g}",
                        records.mean("gaps", family, lambda r: r.accuracy - records.order_blind("gaps")),
                        0,
                    )
                    for family in ("lrcn", "convlstm", "grurcn")
                ],
            ),
            Finding(
                "gaps: what sees windows shorter than the gap is not",
                [_blind(records, "gaps", family, accuracy) for family in ("single_frame", *_WINDOWS)],
            ),
        ]
        if tests := list(records.plan.tasks["gaps"].further_tests):
            cap = records.order_blind("gaps")
            found.append(
                Finding(
                    "gaps: where a window shows both events, C3D does tell their order",
                    [
                        _judged(
                            f"c3d, gap {tests[0]} - {cap:g}",
                            records.mean("gaps", "c3d", lambda r: r.further_accuracies[tests[0]] - cap),
                            0,
                        )
                    ],
                )
            )
    if "paths" in tasks:
        found.append(
            Finding(
                "paths (local motion, remembered where it was): GRU-RCN is the best",
                [
                    _above(records, "paths", Side("grurcn"), Side(family))
                    for family in families
                    if family != "grurcn"
                ],
            )
        )
    return found


def _error(records: Records, task: str, family: str, expected: float) -> float:
    """The standard error of a share of all test clips that is expected to be so large."""
    clips = sum(result.run.test_clips for result in records.of(task, family))
    return math.sqrt(expected * (1 - expected) / clips)


def _at_chance(records: Records, task: str, family: str) -> Check:
    found, chance = records.mean(task, family, accuracy), records.chance(task)
    if found is None:
        return Check(f"{task}: {family} not run", OPEN)
    bound = _ERRORS * _error(records, task, family, chance)
    text = f"{task}: {family} {found.mean:.3f}, to be within {bound:.3f} of {chance:g}"
    return Check(text, HOLDS if abs(found.mean - chance) <= bound else FAILS)


def _blind(records: Records, task: str, family: str, value: Value) -> Check:
    """Whether a family is not above what is blind to the order of frames."""
    found, cap = records.mean(task, family, value), records.order_blind(task)
    if found is None:
        return Check(f"{task}: {family} not run", OPEN)
    bound = cap + _ERRORS * _error(records, task, family, cap)
    text = f"{task}: {family} {found.mean:.3f}, to be at most {bound:.3f}"
    return Check(text, HOLDS if found.mean <= bound else FAILS)


def _as_good_backwards(records: Records, task: str, family: str) -> Check:
    forward = records.mean(task, family, accuracy)
    change = records.mean(task, family, lambda result: result.reversed_accuracy - result.accuracy)
    if forward is None or change is None:
        return Check(f"{task}: {family} not run", OPEN)
    # Both are shares of as many clips, which are not the same.
    bound = _ERRORS * math.sqrt(2) * _error(records, task, family, min(max(forward.mean, 0.01), 0.99))
    text = f"{task}: {family} {change.mean:+.3f}, to be within {bound:.3f}"
    return Check(text, HOLDS if abs(change.mean) <= bound else FAILS)


def _above(records: Records, task: str, a: Side, b: Side, margin: float = 0.0) -> Check:
    """Whether one is above another by more than a margin."""
    return _judged(f"{a} - {b}", records.difference(task, a, b), margin)


def _judged(text: str, mean: Mean | None, bound: float) -> Check:
    """Whether a mean's whole interval is above a bound."""
    if mean is None:
        return Check(f"{text}: not run", OPEN)
    text = f"{text}: {mean}, to be above {bound:g}"
    if mean.half_width is None:
        return Check(f"{text}; one seed", OPEN)
    return Check(text, HOLDS if mean.low > bound else FAILS if mean.high < bound else OPEN)
