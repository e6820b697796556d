"""Results as pictures: speed-ups, roofline, time against T. PNG files, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from convgru_fused.pictures import INK, STYLE

from .analysis import YARDSTICK, Comparison, comparisons, length_curves, means
from .results import Document, Record
from .workloads import MODES

_OURS, _EAGER, _PEER = "#0b6e4f", "#8aa0b4", "#d9822b"
_SLOWER, _MEMORY = "#b3261e", "#2f6db3"
_DOT: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 7, "zorder": 3}
_EAGER_DOT = {**_DOT, "color": _EAGER}
_PEER_DOT = {**_DOT, "color": "white", "markeredgecolor": _PEER, "markeredgewidth": 1.8}
_OURS_DOT = {**_DOT, "color": _OURS, "markersize": 8, "zorder": 4}
_DOTS, _DOT_LABELS = (_OURS_DOT, _PEER_DOT, _EAGER_DOT), ("convgru_fused", "best peer", "eager")


def draw_all(document: Document, folder: Path) -> list[Path]:
    """Writes every picture for which there is data, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "speedup.png": draw_speedups,
        "roofline.png": draw_roofline,
        "time_against_T.png": draw_lengths,
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in pictures.items():
            figure = draw(document)
            if figure is not None:
                figure.savefig(folder / name, dpi=150, facecolor="white")
                written.append(folder / name)
    return written


def draw_speedups(document: Document) -> Figure | None:
    """Bars: how many times faster ours is than eager and than the best peer, row by row, mode beside mode."""
    panels = _panels(document)
    if not panels:
        return None
    names = _names(panels)
    figure = Figure(figsize=(5.6 * len(panels) + 1.2, 1.9 + 0.52 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (mode, group) in zip(axes, panels, strict=True):
        largest = max((r for c in group for r in (c.over_eager, c.over_best) if r is not None), default=1.0)
        for comparison in group:
            y = names.index(comparison.ours.workload)
            best = "" if comparison.best is None else comparison.best.contender
            _speedup_bar(axis, y - 0.2, comparison.over_eager, _EAGER, "")
            _speedup_bar(axis, y + 0.2, comparison.over_best, _OURS, best)
        axis.axvline(1, color=INK, linewidth=1)
        axis.set_xlim(0, max(largest, 1) * 1.32)
        (mean,) = means(group)
        parts = [
            f"{ratio:.2f}× {name}"
            for ratio, name in ((mean.over_eager, "eager"), (mean.over_best, "best peer"))
            if ratio is not None
        ]
        axis.set_title(f"{mode}: geometric mean {', '.join(parts)}" if parts else mode, pad=12)
        axis.set_xlabel("times as fast")
        _rows_axis(axis, names)
    handles = [
        Patch(color=_EAGER, label="against eager"),
        Patch(color=_OURS, label="against the best peer, named behind the bar"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    _subtitle(figure, document)
    return figure


def _speedup_bar(axis: Axes, y: float, ratio: float | None, color: str, name: str) -> None:
    if ratio is not None:
        axis.barh(y, ratio, height=0.36, color=color)
        text = f"{ratio:.2f}  {name}" if name else f"{ratio:.2f}"
        _behind(axis, max(ratio, 1.0), y, text, color=INK if ratio >= 1 else _SLOWER)


def draw_roofline(document: Document) -> Figure | None:
    """Effective GFLOP/s (direct convolution's count) row by row, over the roof of the row: the lower of the
    machine's multiply-add peak and its bandwidth times the operations a byte of compulsory traffic. An
    algorithm with fewer multiplications may reach beyond the roof."""
    panels = _panels(document)
    if not panels:
        return None
    names = _names(panels)
    figure = Figure(figsize=(5.6 * len(panels) + 1.2, 1.9 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    peak, bandwidth = document.ceilings["gflops"], document.ceilings["gbytes_per_s"]
    for axis, (mode, group) in zip(axes, panels, strict=True):
        reached = []
        for comparison in group:
            y = names.index(comparison.ours.workload)
            workload = document.workloads[comparison.ours.workload]
            intensity = workload["flops"][mode] / workload["bytes_floor"][mode]
            roof = min(peak, bandwidth * intensity)
            axis.barh(y, roof, height=0.62, color="#eef2f5")
            axis.plot(
                [roof, roof], [y - 0.31, y + 0.31], color=INK if roof == peak else _MEMORY, linewidth=2.2
            )
            dots = [_gflops(record) for record in (comparison.eager, comparison.best, comparison.ours)]
            known = [value for value in dots if value is not None]
            axis.plot([min(known), max(known)], [y, y], color=_EAGER, linewidth=1.2, zorder=2)
            for value, style in zip(dots, (_EAGER_DOT, _PEER_DOT, _OURS_DOT), strict=True):
                if value is not None:
                    axis.plot(value, y, **style)
            reached.append(max(roof, *known))
            ours = _gflops(comparison.ours) or 0.0
            text = f"{ours:.0f}, {ours / roof:.0%} of the roof"
            _behind(axis, reached[-1], y, text, offset=9)
        axis.set_xlim(0, max(reached) * 1.38)
        axis.set_title(f"{mode}: reached, and the roof of each row", pad=12)
        axis.set_xlabel("GFLOP/s, counted as direct convolution")
        _rows_axis(axis, names)
    handles = [_line(label=label, **style) for label, style in zip(_DOT_LABELS, _DOTS, strict=True)]
    handles.append(_line(INK, f"multiply-add peak, {peak:.0f} GFLOP/s"))
    handles.append(_line(_MEMORY, f"bandwidth, {bandwidth:.0f} GB/s"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    _subtitle(figure, document)
    return figure


def draw_lengths(document: Document) -> Figure | None:
    """Milliseconds against T, with the line through the points: cost must grow in proportion to T."""
    curves = length_curves(document)
    modes = [mode for mode in MODES if any(curve.mode == mode for curve in curves)]
    if not modes:
        return None
    figure = Figure(figsize=(5.4 * len(modes) + 0.6, 4.9), layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        others = iter((_PEER, "#6f4aa8", "#2f6db3"))
        for curve in (c for c in curves if c.mode == mode):
            steps, seconds = [T for T, _ in curve.points], [s * 1e3 for _, s in curve.points]
            color = {"fused": _OURS, YARDSTICK: _EAGER}.get(curve.contender) or next(others, INK)
            label = curve.contender
            if curve.fit is not None:
                label += (
                    f": {curve.fit.per_step * 1e3:.3f} ms a step, within {curve.fit.deviation:.0%} of a line"
                )
                ends = (steps[0], steps[-1])
                axis.plot(ends, [curve.fit.at(T) * 1e3 for T in ends], color=color, linewidth=1.6, alpha=0.6)
            axis.plot(steps, seconds, "o", color=color, markersize=6.5, label=label)
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.set_xticks(sorted({T for c in curves for T, _ in c.points if T >= 64} | {0}))
        axis.set_title(mode, pad=12)
        axis.set_xlabel("time steps T")
        axis.set_ylabel("ms")
        axis.grid()
        axis.legend(loc="upper left", fontsize=9)
    _subtitle(figure, document)
    return figure


def _panels(document: Document) -> list[tuple[str, list[Comparison]]]:
    """The comparisons of each mode that has any; of several of ours the first, since a picture shows one."""
    found = comparisons(document.rows)
    shown = [c for c in found if c.ours.contender == found[0].ours.contender]
    panels = [(mode, [c for c in shown if c.ours.mode == mode]) for mode in MODES]
    return [(mode, group) for mode, group in panels if group]


def _names(panels: list[tuple[str, list[Comparison]]]) -> list[str]:
    """The workloads in any of the panels, from top to bottom."""
    return list(dict.fromkeys(comparison.ours.workload for _, group in panels for comparison in group))


def _rows_axis(axis: Axes, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)


def _behind(axis: Axes, x: float, y: float, text: str, offset: float = 4, color: str = INK) -> None:
    """Small text to the right of a point."""
    axis.annotate(
        text, (x, y), xytext=(offset, 0), textcoords="offset points", va="center", fontsize=8.5, color=color
    )


def _gflops(record: Record | None) -> float | None:
    return None if record is None else record.gflops


def _line(color: str = INK, label: str = "", **style: Any) -> Line2D:
    return Line2D([], [], **{"color": color, "linewidth": 2.2, **style, "label": label})


def _subtitle(figure: Figure, document: Document) -> None:
    machine, settings = document.machine, document.settings
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['threads']} threads"
    dtype = f"{settings['dtype']}{' TF32' if settings['tf32'] else ''}"
    strict = " strict" if settings["precision"] == "strict" else ""
    text = f"{device} · {dtype}{strict} · variant {settings['variant']}"
    text += f" · torch {machine['torch']} · {document.created[:10]}"
    figure.suptitle(text, x=0.012, ha="left", fontsize=9, color="#5b6b7a")
