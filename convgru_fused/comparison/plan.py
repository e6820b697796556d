"""What is compared: a configuration in YAML, and the runs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from convgru_fused.checks import check_choice, check_int, check_number
from convgru_fused.training.budget import width_for
from convgru_fused.training.catalogue import FAMILIES, TASKS
from convgru_fused.training.engine import Run
from convgru_fused.yaml_files import read_yaml

PRESETS = {file.stem: file for file in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


@dataclass(frozen=True)
class TaskPlan:
    """How all families are trained and tested on a task; the fields are those of `Run`.

    Raises TypeError or ValueError naming the field, what was expected and what came.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    test_clips: int = 512
    task_options: dict[str, Any] = field(default_factory=dict)
    test_options: dict[str, Any] = field(default_factory=dict)
    further_tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    families: dict[str, dict[str, Any]] = field(default_factory=dict)  # options of some of them, by name

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "test_clips"):
            check_int(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate, 0)
        for name in self.families:
            check_choice("families", name, FAMILIES)


@dataclass(frozen=True)
class Plan:
    """A comparison: every family on every task from every seed, with about as many parameters.

    Raises TypeError or ValueError naming the field, what was expected and what came.
    """

    seeds: int
    budget: int  # parameters of each network; off by at most a tenth
    families: tuple[str, ...]
    tasks: dict[str, TaskPlan]  # by name in catalogue.TASKS

    def __post_init__(self) -> None:
        check_int("seeds", self.seeds)
        check_int("budget", self.budget)
        for name, chosen, known in (("families", self.families, FAMILIES), ("tasks", self.tasks, TASKS)):
            if not chosen:
                raise ValueError(f"{name}: expected at least one, got none")
            for item in chosen:
                check_choice(name, item, known)
        for task, task_plan in self.tasks.items():  # better now than after the training
            run = self._run(task, self.families[0], 0)
            try:
                for options in ({}, *task_plan.further_tests.values()):
                    run.clips(1, test=True, **options)
            except (TypeError, ValueError) as error:
                raise type(error)(f"tasks: {task}: {error}") from error

    @cached_property
    def runs(self) -> list[Run]:
        """A seed after the other, so that what is there after a while says something about everything."""
        widths = {
            (task, family): self._width(self._run(task, family, 0))
            for task in self.tasks
            for family in self.families
        }
        return [
            self._run(*pair, seed, width=width)
            for seed in range(self.seeds)
            for pair, width in widths.items()
        ]

    def _run(self, task: str, family: str, seed: int, **family_options: Any) -> Run:
        chosen = self.tasks[task]
        return Run(
            family,
            task,
            seed=seed,
            family_options={**chosen.families.get(family, {}), **family_options},
            **{name.name: getattr(chosen, name.name) for name in fields(TaskPlan) if name.name != "families"},
        )

    def _width(self, run: Run) -> float:
        clips = run.clips(1)
        return width_for(run.family, clips.num_classes, clips.frame_shape, self.budget, **run.family_options)


def plan_file(preset: str) -> Path:
    """The file of a preset. Raises ValueError for another name."""
    return PRESETS[check_choice("preset", preset, PRESETS)]


def read(file: Path) -> Plan:
    """A plan from YAML. Raises ValueError or TypeError naming the file or field that is wrong."""
    return plan_of(read_yaml(file, "a plan"), str(file))


def plan_of(values: Any, name: str) -> Plan:
    """A plan from plain data. `name` is where the data come from."""
    values = _fields(values, Plan, name)
    tasks = values["tasks"] if isinstance(values["tasks"], Mapping) else {}
    values["tasks"] = {
        task: TaskPlan(**_fields(options, TaskPlan, f"{name}: tasks: {task}"))
        for task, options in tasks.items()
    }
    return Plan(**{**values, "families": tuple(values["families"])})


def _fields(values: Any, kind: type, name: str) -> dict[str, Any]:
    """The values as a dict, if they are the fields of a class."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected fields and their values, got {type(values).__name__}")
    known = {item.name: item for item in fields(kind)}
    for field_name in values:
        if field_name not in known:
            raise ValueError(f"{name}: expected fields among {', '.join(known)}, got {field_name!r}")
    for field_name, item in known.items():
        if item.default is MISSING and item.default_factory is MISSING and field_name not in values:
            raise ValueError(f"{name}: expected {field_name}, got none")
    return dict(values)
