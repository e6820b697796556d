"""A whole run as text: the video, ours against the peers, everybody's times, the cost against T, the
machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import video_report
from .analysis import Comparison, Mean, by_row, comparisons, length_curves, means, seconds
from .results import FAILED, OK, WRONG, Document, Record
from .stats import RATIO_CAP
from .tables import milliseconds, size, table, time_and_spread, times


def show(document: Document, out: Console) -> None:
    """Prints everything about one run."""
    if document.video is not None:
        video_report.show(document.video, document.workloads, out)
    if document.rows:
        found = comparisons(document.rows)
        out.print(_ours(found))
        out.print(_everybody(document.rows))
        for mean_line in _mean_lines(means(found)):
            out.print(mean_line)
        out.print()
    if document.lengths:
        out.print(_lengths(document))
    if document.models:
        out.print(_models(document.models))
    for line in problems(document.records()):
        out.print(Text(line, style="red"), soft_wrap=True)
    out.print(Text(machine_lines(document), style="dim"), soft_wrap=True)


def _ours(found: Sequence[Comparison]) -> Table:
    several = len({comparison.ours.contender for comparison in found}) > 1
    on_gpu = any(comparison.ours.peak_bytes is not None for comparison in found)
    words = ["workload", "mode", *(["contender"] if several else [])]
    memory = "peak memory" if on_gpu else "kept"
    numbers = ["time", "ms/step", "GFLOP/s", memory, "of eager's", "vs eager", "vs best peer"]
    result = table("convgru_fused against PyTorch", words, numbers)
    result.add_column("best peer", no_wrap=True)
    for comparison in found:
        ours = comparison.ours
        result.add_row(
            ours.workload,
            ours.mode,
            *([Text(ours.contender)] if several else []),
            time_and_spread(ours),
            f"{ours.ms_per_step:.3f}",
            f"{ours.gflops:.0f}",
            size(ours.peak_bytes if on_gpu else ours.kept_bytes),
            "" if comparison.kept_ratio is None else f"{comparison.kept_ratio:.2f}",
            times(comparison.over_eager),
            times(comparison.over_best),
            Text("" if comparison.best is None else _named(comparison.best)),
        )
    return result


def _named(record: Record) -> str:
    return f"{record.contender} ({record.detail})" if record.detail else record.contender


def _everybody(records: Sequence[Record]) -> Table:
    timed = {record.contender for record in records if record.status in (OK, WRONG, FAILED)}
    names = [name for name in dict.fromkeys(record.contender for record in records) if name in timed]
    result = table("everybody, ms", ["workload", "mode"], names)
    for (workload, mode), row in by_row(records).items():
        fastest = min((s for s in map(seconds, row.values()) if s is not None), default=None)
        result.add_row(workload, mode, *(_cell(row.get(name), fastest) for name in names))
    return result


def _cell(record: Record | None, fastest: float | None) -> Text:
    if record is None or record.status not in (OK, WRONG, FAILED):
        return Text("-", style="dim")
    if record.status != OK:
        return Text(record.status, style="red")
    compiled = "" if record.compile_seconds is None else f" (compiled in {record.compile_seconds:.0f} s)"
    return Text(milliseconds(record.median) + compiled, style="bold" if record.median == fastest else "")


def _mean_lines(found: Sequence[Mean]) -> list[Text]:
    lines = []
    for mean in found:
        parts = [] if mean.over_eager is None else [f"{mean.over_eager:.2f}x eager"]
        if mean.over_best is not None and mean.slowest is not None:
            least = f"{mean.slowest.over_best:.2f}x, {mean.slowest.ours.workload}"
            parts.append(f"{mean.over_best:.2f}x the best peer (least {least})")
        if parts:
            rows = "1 row" if mean.rows == 1 else f"{mean.rows} rows"
            lines.append(Text(f"{mean.contender} {mean.mode}, {rows}: {', '.join(parts)}", style="bold"))
    if lines:
        lines.append(
            Text(f"geometric means; a ratio above {RATIO_CAP:g} counts as {RATIO_CAP:g}", style="dim")
        )
    return lines


def _lengths(document: Document) -> Table:
    curves = length_curves(document)
    steps = sorted({T for curve in curves for T, _ in curve.points})
    numbers = [*(f"T={T}" for T in steps), "off the line by"]
    result = table("cost against T, ms a time step", ["mode", "contender"], numbers)
    for curve in curves:
        points = dict(curve.points)
        cells = [f"{points[T] * 1e3 / T:.3f}" if T in points else "" for T in steps]
        result.add_row(
            curve.mode,
            Text(curve.contender),
            *cells,
            "" if curve.fit is None else f"{curve.fit.deviation:.0%}",
        )
    return result


def _models(records: Sequence[Record]) -> Table:
    result = table("whole models, fused", ["model", "mode", "what"], ["time", "as it is", "speed-up"])
    result.add_column("largest error", no_wrap=True)
    for (workload, mode), row in by_row(records).items():
        ours, peer = (next((r for r in row.values() if r.is_ours is own), None) for own in (True, False))
        if ours is None or ours.median is None or peer is None or peer.median is None:
            continue
        result.add_row(
            workload,
            mode,
            ours.detail,
            time_and_spread(ours),
            time_and_spread(peer),
            times(peer.median / ours.median),
            ", ".join(f"{name} {error.largest:.0e}" for name, error in ours.errors.items()),
        )
    return result


def problems(records: Iterable[Record]) -> list[str]:
    """One line for each result that was refused its time and each contender that broke."""
    return [
        f"{record.workload} {record.mode}: {record.contender} is {record.status}: {record.note}"
        for record in records
        if record.status in (WRONG, FAILED)
    ]


def machine_lines(document: Document) -> str:
    """Where, with what and when."""
    machine, settings = document.machine, document.settings
    gpu = f"{machine['gpu']['name']}, " if machine["gpu"] else ""
    cpu = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['isa']}"
    versions = [f"{name} {machine[name]}" for name in ("torch", "triton", "convgru_fused") if machine[name]]
    commit = f" at {machine['commit']}" if machine["commit"] else ""
    tf32 = " with TF32" if settings["tf32"] else ""
    strict = " strict" if settings["precision"] == "strict" else ""
    what = f"{settings['dtype']}{tf32}{strict}, variant {settings['variant']}, device {machine['device']}"
    gflops, gbytes = document.ceilings["gflops"], document.ceilings["gbytes_per_s"]
    return (
        f"{gpu}{cpu}; measured ceilings {gflops:.0f} GFLOP/s, {gbytes:.0f} GB/s\n"
        f"{', '.join(versions)}{commit}; {what}; {document.created}"
    )


def progress(total: int) -> Progress:
    """A progress bar of one task on standard error, silent unless that is a terminal."""
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    bar.add_task("", total=total)
    return bar
