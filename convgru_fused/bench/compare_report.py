"""One run against another as text."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from .analysis import compare, differences
from .results import Document
from .tables import table, time_and_spread

_STYLES = {"faster": "green", "slower": "red"}


def show(a: Document, b: Document, names: tuple[str, str], out: Console) -> None:
    """Prints every row's times in A and B, the ratio B/A, and whether that is more than the spread."""
    result = table(f"A = {names[0]}, B = {names[1]}", ["workload", "mode", "contender"], ["A", "B", "B/A"])
    result.add_column("B is", no_wrap=True)
    changes = compare(a, b)
    for change in changes:
        ratio = "" if change.ratio is None else f"{change.ratio:.2f}"
        verdict = Text(change.verdict, style=_STYLES.get(change.verdict, "dim"))
        result.add_row(
            *map(Text, change.key), time_and_spread(change.a), time_and_spread(change.b), ratio, verdict
        )
    out.print(result)
    kinds = ("faster", "slower", "same", "only in A", "only in B")
    counts = (f"{sum(change.verdict == kind for change in changes)} {kind}" for kind in kinds)
    out.print(f"{', '.join(counts)} (faster, slower: the 20th to 80th percentiles do not overlap)")
    for line in differences(a, b):
        out.print(Text(f"differs: {line}", style="yellow"), soft_wrap=True)
