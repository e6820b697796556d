"""What `fuse` has done, and what it has left alone, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .forward import unfuse


@dataclass(frozen=True)
class Record:
    """One module.

    Attributes:
        path: where it is in the model; "" is the model itself.
        class_name: its class.
        recognised: what it computes: variant, channels C->K, kernel; "" if it was not replaced.
        reason: why it was left alone; "" if it was replaced.
        max_error: largest difference of an output from the original's, over its largest value, when it was
            verified; None if it was not.
        speedup: the original's time over the fused one's for a forward pass; None if not asked for.
    """

    path: str
    class_name: str
    recognised: str = ""
    reason: str = ""
    max_error: float | None = None
    speedup: float | None = None


@dataclass
class Report:
    """The records of `fuse`; as text, a table. As a context manager it undoes the replacements at its end.

    Attributes:
        replaced: the modules whose forward is fused now.
        skipped: those that look like recurrent cells and were left alone.
    """

    model: nn.Module = field(repr=False)
    replaced: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exception: object) -> None:
        unfuse(self.model)

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The same in lists and dicts, for JSON."""
        return {
            "replaced": [asdict(record) for record in self.replaced],
            "skipped": [asdict(record) for record in self.skipped],
        }

    def __str__(self) -> str:
        if not self.replaced and not self.skipped:
            return f"{type(self.model).__name__}: no ConvGRU found, nothing changed"
        header = ("module", "class", "verdict", "what", "error", "speed-up")
        rows = [header]
        for record in (*self.replaced, *self.skipped):
            rows.append(
                (
                    record.path or "(the model)",
                    record.class_name,
                    "left alone" if record.reason else "replaced",
                    record.reason or record.recognised,
                    "" if record.max_error is None else f"{record.max_error:.0e}",
                    "" if record.speedup is None else f"{record.speedup:.2f}x",
                )
            )
        used = [i for i in range(len(header)) if any(row[i] for row in rows[1:])]
        widths = {i: max(len(row[i]) for row in rows) for i in used}
        return "\n".join("  ".join(f"{row[i]:{widths[i]}}" for i in used).rstrip() for row in rows)
