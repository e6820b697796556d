"""A comparison as text and as one HTML file."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from convgru_fused.bench.tables import size, table
from convgru_fused.files import replace_file

from .analysis import CONFIDENCE, Records, accuracy
from .document import Document
from .hypotheses import FAILS, HOLDS, OPEN, findings
from .plots import draw_all

_TITLES = {
    "accuracy": "Accuracy",
    "extent": "Accuracy against the frames between what matters",
    "layers": "Accuracy of each layer's own classifier",
    "cost": "Accuracy against cost",
}
_CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "undecided"}
_COLUMNS = ("accuracy", "shuffled", "backwards", "parameters", "Mflop/clip", "ms/step", "kept/clip", "seeds")


def show(document: Document, out: Console) -> None:
    """Prints the tables and the findings."""
    records = Records(document)
    out.print(Text("\n".join([*_machine(document), _summary(document)])))
    for task, rows in _tables(records):
        result = table(task, ["family"], _COLUMNS)
        for row in rows[1:]:
            result.add_row(*row)
        out.print(result)
    styles = {HOLDS: "green", FAILS: "red", OPEN: "yellow"}
    for finding in findings(records):
        out.print(Text.assemble((finding.verdict, styles[finding.verdict]), f": {finding.text}"))
        for check in finding.checks:
            if check.verdict != HOLDS:
                out.print(Text.assemble("    ", (check.verdict, styles[check.verdict]), f": {check.text}"))
    for line in _fused(document):
        out.print(Text(line))


def write(document: Document, file: Path) -> None:
    """Writes the report, and its pictures alone as FILE-NAME.svg beside it."""
    records = Records(document)
    pictures = draw_all(records)
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        (Path(__file__).parent / "report.html").read_text()
    )
    text = template.render(
        machine=_machine(document),
        summary=_summary(document),
        pictures=[(_TITLES[name], Markup(_inline(picture))) for name, picture in pictures.items()],
        tables=_tables(records),
        findings=findings(records),
        classes=_CLASSES,
        fused=_fused(document),
    )
    replace_file(file, lambda part: part.write_text(text))
    for name, picture in pictures.items():
        (file.parent / f"{file.stem}-{name}.svg").write_text(picture)


def _inline(picture: str) -> str:
    """An SVG file as an element of a page."""
    return re.sub(r"^.*?(?=<svg)", "", picture, flags=re.DOTALL)


def _machine(document: Document) -> list[str]:
    machine = document.machine
    gpu = f"{machine['gpu']['name']}, " if machine["gpu"] else ""
    commit = f" at {machine['commit']}" if machine["commit"] else ""
    return [
        f"{gpu}{machine['cpu']}, {machine['cores']} cores",
        f"torch {machine['torch']}, convgru_fused {machine['convgru_fused']}{commit}; {document.created}",
    ]


def _summary(document: Document) -> str:
    plan = document.plan
    steps = ", ".join(f"{task.steps} on {name}" for name, task in plan.tasks.items())
    return (
        f"{len(document.results)} of {len(plan.runs)} runs; {plan.seeds} seeds; networks of "
        f"{plan.budget} parameters, a tenth more or less; steps: {steps}. "
        f"Intervals of {CONFIDENCE:.0%} over seeds."
    )


def _tables(records: Records) -> list[tuple[str, list[list[str]]]]:
    """Rows of cells of every task, its columns' names first."""
    tables = []
    for task in records.plan.tasks:
        rows = [["family", *_COLUMNS]]
        for family in records.families(task):
            results = records.of(task, family)
            first = results[0]
            means = [
                records.mean(task, family, value)
                for value in (accuracy, lambda r: r.shuffled_accuracy, lambda r: r.reversed_accuracy)
            ]
            step = statistics.median(result.seconds / result.run.steps for result in results)
            rows.append(
                [
                    family,
                    *map(str, means),
                    f"{first.parameters}",
                    f"{first.flops / 1e6:.1f}",
                    f"{step * 1e3:.0f}",
                    size(first.kept_bytes),
                    f"{len(results)}",
                ]
            )
        known = f"chance {records.chance(task):g}"
        if records.order_blind(task) != records.chance(task):
            known += f", blind to order at most {records.order_blind(task):g}"
        tables.append((f"{task} ({known})", rows))
    return tables


def _fused(document: Document) -> list[str]:
    return [
        f"GRU-RCN's training step on {times.task}: {times.eager_seconds * 1e3:.0f} ms eager, "
        f"{times.fused_seconds * 1e3:.0f} ms fused, {times.factor:.2f} times as fast (medians of "
        f"{times.steps}, batch {times.batch_size}, {times.threads} threads; losses differ by at most "
        f"{times.loss_difference:.0e})"
        for times in document.fused
    ]
