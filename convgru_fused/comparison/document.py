"""A comparison as a file: the plan, the machine, and a record of every run that is there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convgru_fused.files import replace_file
from convgru_fused.training.engine import Result

from .plan import Plan, plan_of

SCHEMA = 1
_LOSSES = 50  # kept of a run: means of as many equal parts


@dataclass(frozen=True)
class FusedTimes:
    """GRU-RCN's training steps with the fused layers and with the eager ones, on the same clips."""

    task: str
    batch_size: int
    threads: int
    steps: int
    fused_seconds: float  # median of a step
    eager_seconds: float
    loss_difference: float  # largest, relative, of a step

    @property
    def factor(self) -> float:
        return self.eager_seconds / self.fused_seconds


@dataclass(frozen=True)
class Document:
    """What a report is made of."""

    plan: Plan
    machine: dict[str, Any]
    created: str
    fused: list[FusedTimes]
    results: list[Result]  # with _LOSSES means of losses each

    def save(self, file: Path) -> None:
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        replace_file(file, lambda part: part.write_text(text + "\n"))

    @classmethod
    def load(cls, file: Path) -> Document:
        """Raises ValueError naming the file if it is no comparison."""
        try:
            values = json.loads(file.read_text())
            if values["schema"] != SCHEMA:
                raise ValueError(f"schema {values['schema']}")
            return cls(
                plan_of(values["plan"], str(file)),
                values["machine"],
                values["created"],
                [FusedTimes(**times) for times in values["fused"]],
                [Result.of(result) for result in values["results"]],
            )
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{file}: expected the records of a comparison, got {error}") from error


def thinned(result: Result) -> Result:
    """With means of losses: those of a thousand runs fit in a file."""
    parts = min(_LOSSES, len(result.losses))
    bounds = [len(result.losses) * part // parts for part in range(parts + 1)]
    pieces = [result.losses[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return replace(result, losses=[round(sum(piece) / len(piece), 5) for piece in pieces])
