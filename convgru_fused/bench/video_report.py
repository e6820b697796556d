"""The table of the main job: layer by layer what eager and ours need for a clip, and in total."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from .analysis import by_row, seconds
from .check import worst
from .results import Record, Video
from .tables import milliseconds, size, table, times
from .workloads import MODES


def show(video: Video, workloads: Mapping[str, Mapping[str, Any]], out: Console) -> None:
    """Prints the table. workloads: the document's, by name."""
    rows = by_row(video.rows)
    names = list(dict.fromkeys(record.contender for record in video.rows))
    ours = [record.contender for record in video.rows if record.is_ours]
    main = ours[0] if ours else names[0]
    rate = "" if video.frames_per_second is None else f" at {video.frames_per_second:.4g}/s"
    out.print(
        Text(
            f"{Path(video.path).name}: {video.frames} frames of {video.width}x{video.height}{rate}; "
            f"{video.clips} clips of {video.frames_per_clip} frames; "
            f"VGG-16 ({video.vgg_weights or 'random weights'}), "
            f"{milliseconds(video.feature_seconds / video.clips)} ms a clip, computed once for all"
        ),
        soft_wrap=True,
    )
    numbers = [
        *(f"{name} ms/clip" for name in names),
        "vs eager",
        "ms/step",
        "kept",
        "eager kept",
        "error/allowed",
    ]
    result = table("GRU-RCN on a real video", ["layer", "mode", "C->K", "HxW"], numbers)
    for mode in MODES:
        found = {workload: row for (workload, m), row in rows.items() if m == mode}
        for workload, row in found.items():
            result.add_row(*_cells(workload, mode, workloads[workload], row, names, main))
        if found:
            result.add_section()
            result.add_row(
                *_total(mode, list(found.values()), names, main, video.frames_per_clip), style="bold"
            )
            result.add_section()
    out.print(result)
    for mode in MODES:
        totals = {name: _sum([row.get(name) for (_, m), row in rows.items() if m == mode]) for name in names}
        rates = [f"{name} {video.frames_per_clip / total:.1f}" for name, total in totals.items() if total]
        if rates:
            out.print(Text(f"frames per second, {mode}: {', '.join(rates)}", style="bold"))
    out.print()


def _cells(
    name: str, mode: str, sizes: Mapping[str, Any], row: Mapping[str, Record], names: list[str], main: str
) -> list[str | Text]:
    ours, eager = row.get(main), row.get("eager")
    shape = [f"{sizes['C']}->{sizes['K']}", f"{sizes['H']}x{sizes['W']}"]
    cells: list[str | Text] = [name.removeprefix("video_"), mode, *shape]
    cells += [_time(row.get(contender)) for contender in names]
    a, b = seconds(eager), seconds(ours)
    cells.append(times(a / b if a and b else None))
    cells.append(f"{ours.ms_per_step:.2f}" if ours and ours.ms_per_step is not None else "")
    cells += [size(_memory(record)) for record in (ours, eager)]
    cells.append(f"{worst(ours.errors)[1].severity:.2f}" if ours and ours.errors else "")
    return cells


def _time(record: Record | None) -> str | Text:
    if record is None or record.status == "ok":
        return milliseconds(seconds(record))
    return Text(record.status, style="red")


def _total(
    mode: str, rows: list[Mapping[str, Record]], names: list[str], main: str, frames: int
) -> list[str | Text]:
    totals = {name: _sum([row.get(name) for row in rows]) for name in names}
    ours, eager = totals[main], totals.get("eager")
    kept = [_kept_sum([row.get(name) for row in rows]) for name in (main, "eager")]
    return [
        "all five", mode, "", "", *(milliseconds(totals[name]) for name in names),
        times(eager / ours if ours and eager else None),
        f"{ours * 1e3 / frames:.2f}" if ours else "",
        *map(size, kept), "",
    ]  # fmt: skip


def _sum(records: list[Record | None]) -> float | None:
    """The sum of the medians, if there is one for every layer."""
    found = [seconds(record) for record in records]
    return None if None in found else sum(s for s in found if s is not None)


def _memory(record: Record | None) -> int | None:
    if record is None:
        return None
    return record.kept_bytes if record.kept_bytes is not None else record.peak_bytes


def _kept_sum(records: list[Record | None]) -> int | None:
    found = [_memory(record) for record in records]
    return None if None in found else sum(count for count in found if count is not None)
