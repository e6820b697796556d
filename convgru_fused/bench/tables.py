"""Pieces of text that all reports share: tables, times, ratios, sizes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .results import Record

_PLAIN_WIDTH = 160  # of text that does not go to a terminal


def console(file: IO[str] | None = None) -> Console:
    """Where reports go, standard output unless a file is given: colour in a terminal, plain text
    elsewhere."""
    stream = file or sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(file=stream, highlight=False, width=width)


def table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table: columns of words, then columns of numbers."""
    found = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in words:
        found.add_column(Text(column), no_wrap=True)
    for column in numbers:  # as text, for what is in brackets would be taken for markup
        found.add_column(Text(column), justify="right", no_wrap=True)
    return found


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three significant digits."""
    if seconds is None:
        return ""
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def time_and_spread(record: Record | None) -> str:
    """Median in ms and half the distance of the 20th and 80th percentiles in percent of it."""
    if record is None or record.median is None or record.p20 is None or record.p80 is None:
        return ""
    return f"{milliseconds(record.median)} ms ±{(record.p80 - record.p20) / 2 / record.median:3.0%}"


def times(ratio: float | None) -> Text:
    """A speed-up, green from 1 on and red below."""
    return Text("" if ratio is None else f"{ratio:.2f}x", style="green" if ratio and ratio >= 1 else "red")


def size(count: float | None) -> str:
    """Bytes as a number people can read."""
    if count is None:
        return ""
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
