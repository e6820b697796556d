"""The pictures of a comparison: SVG, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from convgru_fused.pictures import INK, STYLE

from .analysis import Mean, Records, accuracy, of_layer, of_test

_COLORS = {
    "single_frame": "#8aa0b4",
    "early_fusion": "#d9822b",
    "late_fusion": "#e3b23c",
    "slow_fusion": "#a8632a",
    "c3d": "#b3261e",
    "two_stream": "#c2559d",
    "lrcn": "#2f6db3",
    "convlstm": "#6f4aa8",
    "grurcn": "#0b6e4f",
}
_PANEL = (4.6, 3.9)  # inches


def draw_all(records: Records) -> dict[str, str]:
    """The text of every picture for which there is data, by name."""
    pictures: dict[str, Callable[[Records], Figure | None]] = {
        "accuracy": draw_accuracies,
        "extent": draw_extents,
        "layers": draw_layers,
        "cost": draw_costs,
    }
    drawn = {}
    # The same identifiers each time, so that the same records give the same file.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "convgru_fused", "svg.fonttype": "none"}):
        for name, draw in pictures.items():
            figure = draw(records)
            if figure is not None:
                text = io.StringIO()
                figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None})
                drawn[name] = text.getvalue()
    return drawn


def draw_accuracies(records: Records) -> Figure | None:
    """Every family's accuracy, task by task."""
    tasks = _tasks(records)
    if not tasks:
        return None
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        families = records.families(task)
        for y, family in enumerate(families):
            mean = records.mean(task, family, accuracy)
            if mean is not None:
                axis.barh(y, mean.mean, height=0.62, color=_COLORS[family])
                axis.errorbar(mean.mean, y, xerr=mean.half_width, color=INK, capsize=2, linewidth=1.2)
        axis.set_yticks(range(len(families)), families)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.02)
        axis.grid(axis="x")
        _references(records, task, axis.axvline)
        axis.set_title(task, pad=10)
        axis.set_xlabel("accuracy")
    return figure


def draw_extents(records: Records) -> Figure | None:
    """Accuracy against the frames from the first to the last that matters, where a task is tested on several
    such numbers."""
    tasks = [task for task in _tasks(records) if records.plan.tasks[task].further_tests]
    if not tasks:
        return None
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        names = list(records.plan.tasks[task].further_tests)
        for family in records.families(task):
            means = [records.mean(task, family, of_test(name)) for name in names]
            _line(axis, means, family)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("frames between what matters")
        _accuracy_axis(records, axis, task)
    _legend(figure, axes)
    return figure


def draw_layers(records: Records) -> Figure | None:
    """The accuracy of each layer's own classifier, of the families that have them."""
    tasks = [
        task for task in _tasks(records) if any(_layers(records, task, f) for f in records.families(task))
    ]
    if not tasks:
        return None
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        names: list[str] = []
        for family in records.families(task):
            if layers := _layers(records, task, family):
                names = layers
                _line(axis, [records.mean(task, family, of_layer(name)) for name in layers], family)
        axis.set_xticks(range(len(names)), names)
        _accuracy_axis(records, axis, task)
    _legend(figure, axes)
    return figure


def draw_costs(records: Records) -> Figure | None:
    """Accuracy against the operations of a clip's way through the network."""
    tasks = _tasks(records)
    if not tasks:
        return None
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        for family in records.families(task):
            mean = records.mean(task, family, accuracy)
            flops = records.of(task, family)[0].flops / 1e6
            if mean is not None:
                axis.errorbar(
                    flops, mean.mean, yerr=mean.half_width, fmt="o", color=_COLORS[family], label=family
                )
        axis.set_xscale("log")
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
        axis.set_xlabel("Mflop a clip")
        _accuracy_axis(records, axis, task)
    _legend(figure, axes)
    return figure


def _tasks(records: Records) -> list[str]:
    return [task for task in records.plan.tasks if records.families(task)]


def _layers(records: Records, task: str, family: str) -> list[str]:
    return list(records.of(task, family)[0].layer_accuracies)


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_PANEL[0] * count, _PANEL[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _line(axis: Axes, means: Sequence[Mean | None], family: str) -> None:
    """A line through means one unit apart, with their intervals."""
    known = [(x, mean) for x, mean in enumerate(means) if mean is not None]
    errors = [mean.half_width or 0.0 for _, mean in known]
    axis.errorbar(
        [x for x, _ in known],
        [mean.mean for _, mean in known],
        yerr=errors if any(errors) else None,
        fmt="-o",
        markersize=5,
        capsize=2,
        color=_COLORS[family],
        label=family,
    )


def _accuracy_axis(records: Records, axis: Axes, task: str) -> None:
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y")
    axis.set_title(task, pad=10)
    axis.set_ylabel("accuracy")
    _references(records, task, axis.axhline)


def _references(records: Records, task: str, draw: Callable[..., object]) -> None:
    """Chance, and what a model that is blind to order can reach."""
    draw(records.chance(task), color=INK, linewidth=1, linestyle=":")
    if records.order_blind(task) != records.chance(task):
        draw(records.order_blind(task), color=INK, linewidth=1, linestyle="--")


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    names = [name for name in _COLORS if name in found]
    handles = [found[name] for name in names]
    figure.legend(handles=handles, labels=names, loc="outside lower center", ncols=5)
