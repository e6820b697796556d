"""Carries out a plan: the video, the workloads, the cost against T, whole models; saves what is found after
every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import machine
from .measure import Say, at_length, measure_workload, prepared
from .models import measure_model
from .plan import Plan
from .results import Document, Record
from .video import LAYERS, measure_video
from .workloads import LENGTHS_WORKLOAD, WORKLOADS, Workload


def count_steps(plan: Plan) -> int:
    """How often `execute` will call advance."""
    layers = 0 if plan.clips is None else len(LAYERS)
    return len(plan.settings.modes) * (layers + len(plan.workloads) + len(plan.lengths) + len(plan.models))


def start(plan: Plan) -> Document:
    """An empty document of a plan; measures the machine's ceilings."""
    settings = plan.settings
    with prepared(settings, plan.threads):
        ceilings = machine.ceilings(settings.device, settings.dtype)
        return Document(machine.describe(settings.device), ceilings, plan.plain_settings())


def execute(plan: Plan, document: Document, say: Say, advance: Callable[[], None]) -> None:
    """Fills the document, saving it after each row and mode. say: what is being done; advance: one more is
    finished."""

    def done() -> None:
        document.save(plan.json)
        advance()

    with prepared(plan.settings, plan.threads):
        if plan.clips is not None:
            measure_video(plan.clips, plan.video_settings, plan.vgg_weights, document, done, say)
        for workload in plan.workloads:
            _note(document, workload, plan)
            for records in measure_workload(workload, plan.settings, plan.contenders, say):
                document.rows += records
                done()
        for steps in plan.lengths:
            _measure_length(plan, document, at_length(steps), done, say)
        for name in plan.models:
            for records in measure_model(name, plan.settings, say):
                document.models += records
                done()
        say("ceilings of the machine")
        # Another program may have run while they were measured at the start.
        again = machine.ceilings(plan.settings.device, plan.settings.dtype)
        document.ceilings = {name: max(value, again[name]) for name, value in document.ceilings.items()}
    document.finished = True
    document.save(plan.json)


def _measure_length(
    plan: Plan, document: Document, workload: Workload, done: Callable[[], None], say: Say
) -> None:
    """Ours and eager at one T; taken from the rows if the suite has just measured the same."""
    _note(document, workload, plan)
    runners = tuple(c for c in plan.contenders if c.is_ours or c.name == "eager")
    same = _measured(document, workload, {c.name for c in runners})
    for mode in plan.settings.modes if same else ():
        document.lengths += [record for record in same if record.mode == mode]
        done()
    if not same:
        for records in measure_workload(workload, plan.settings, runners, say):
            document.lengths += records
            done()


def _measured(document: Document, workload: Workload, contenders: set[str]) -> list[Record]:
    if workload.steps != WORKLOADS[LENGTHS_WORKLOAD].steps:
        return []
    rows = [r for r in document.rows if r.workload == LENGTHS_WORKLOAD and r.contender in contenders]
    return [replace(record, workload=workload.name) for record in rows]


def _note(document: Document, workload: Workload, plan: Plan) -> None:
    document.add_workload(workload, workload.batch(plan.settings.device.type), plan.settings.dtype.itemsize)
