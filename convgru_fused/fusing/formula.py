"""What a module computes, as steps of ConvGRUs and the few operators around them that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .channels import Frame, Name, Own, Ref
from .layout import ReadOwn, elements, scaled, sum_of
from .recognition import Cell, Gate
from .recording import Call, Step


@dataclass(frozen=True)
class Nested:
    """A list, tuple or dict in a module's result."""

    kind: type
    items: tuple[object, ...]
    keys: tuple[object, ...] = ()

    def build(self, items: list[object]) -> object:
        if self.kind is dict:
            return dict(zip(self.keys, items, strict=True))
        # A named tuple takes its items one by one.
        return self.kind(*items) if hasattr(self.kind, "_fields") else self.kind(items)


@dataclass(frozen=True)
class Scan:
    """Steps with the same weights, each from the state that the one before has made: a sequence.

    Inputs and maps of `cell` that are a Frame stand for the whole of its clip, one frame a step.
    """

    cell: Cell
    steps: int
    reverse: bool
    output: Ref  # (T,N,K,H,W), in the order of the clips' frames
    dtype: torch.dtype = field(compare=False)


Instruction = Call | Step | Scan


@dataclass(frozen=True)
class Formula:
    """Instructions, then the result, nested as the module's own, and the attributes that are set."""

    instructions: tuple[Instruction, ...]
    result: object
    effects: tuple[tuple[str, object], ...] = ()

    def cells(self) -> list[Cell]:
        return [i.cell for i in self.instructions if isinstance(i, (Step, Scan))]

    def has_state(self) -> bool:
        """Whether it is that of a recurrent cell, and not just a gated convolution."""
        return any(cell.state is not None or any(g.hidden for g in cell.gates) for cell in self.cells())

    def is_given_state(self) -> bool:
        """Whether one of its steps has a state to begin with, or a step before it."""
        return self.has_scan() or any(cell.state is not None for cell in self.cells())

    def has_scan(self) -> bool:
        """Whether steps have become a sequence."""
        return any(isinstance(i, Scan) for i in self.instructions)

    def calls(self) -> list[Call]:
        return [i for i in self.instructions if isinstance(i, Call)]

    def inputs(self) -> set[Ref]:
        """What comes from outside."""
        made = {output for i in self.instructions for output in outputs_of(i)}
        used = {ref for tree in (self.instructions, self.result, self.effects) for ref in refs_in(tree)}
        return used - made

    def skeleton(self) -> object:
        """What stays the same when the sizes of the inputs change."""
        parts: list[object] = [self.result, self.effects]
        for instruction in self.instructions:
            if isinstance(instruction, Call):
                parts.append((instruction.operator, tuple(names_in(instruction.args)), instruction.outputs))
            elif isinstance(instruction, Scan):
                parts.append(replace(instruction, steps=0))
            else:
                parts.append(instruction)
        return tuple(parts)

    def without_lengths(self) -> Formula:
        """The same for sequences of any length, which those have that read clips."""
        return replace(
            self,
            instructions=tuple(
                replace(i, steps=0)
                if isinstance(i, Scan) and any(isinstance(name, Frame) for name in names_in(i.cell.gates))
                else i
                for i in self.instructions
            ),
        )

    def __str__(self) -> str:
        texts = []
        for instruction in self.instructions:
            if isinstance(instruction, Scan):
                order = "reversed " if instruction.reverse else ""
                texts.append(f"{order}sequence of {instruction.cell}")
            elif isinstance(instruction, Step):
                texts.append(str(instruction.cell))
        counts = {text: texts.count(text) for text in texts}
        return "; ".join(text if n == 1 else f"{n} x {text}" for text, n in counts.items())


# Walking through instructions.


def names_in(tree: object) -> Iterator[Name]:
    """Every tensor that a tree of tuples and dataclasses names."""
    if isinstance(tree, (Ref, Frame, Own)):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from names_in(item)
    elif is_dataclass(tree):
        for item in fields(tree):
            yield from names_in(getattr(tree, item.name))


def refs_in(tree: object) -> Iterator[Ref]:
    for name in names_in(tree):
        if isinstance(name, Frame):
            yield name.clip
        elif isinstance(name, Ref):
            yield name


def renamed(tree: Any, new: Callable[[Name], Name]) -> Any:
    """The same with other names."""
    if isinstance(tree, (Ref, Frame, Own)):
        return new(tree)
    if type(tree) is tuple:
        return tuple(renamed(item, new) for item in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        changes = {item.name: renamed(getattr(tree, item.name), new) for item in fields(tree)}
        return replace(tree, **changes)
    return tree


def outputs_of(instruction: Instruction) -> tuple[Ref, ...]:
    if isinstance(instruction, Call):
        return instruction.outputs
    return (instruction.output,)


def inputs_of(instruction: Instruction) -> Iterator[Ref]:
    if isinstance(instruction, Call):
        yield from refs_in(instruction.args)
        yield from refs_in(instruction.kwargs)
    else:
        yield from refs_in(instruction.cell)


def needed(instructions: Iterable[Instruction], wanted: Iterable[Ref]) -> list[Instruction]:
    """Those without which `wanted` cannot be had."""
    alive = set(wanted)
    kept: list[Instruction] = []
    for instruction in reversed(list(instructions)):
        if alive.intersection(outputs_of(instruction)):
            kept.append(instruction)
            alive.update(inputs_of(instruction))
    return kept[::-1]


def numbered(formula: Formula) -> Formula:
    """The same with its tensors counted from nought, so that equal formulas have equal names."""
    names: dict[Ref, Ref] = {}
    for instruction in formula.instructions:
        for output in outputs_of(instruction):
            names[output] = Ref(f"{output.name.partition(' ')[0]} {len(names)}")

    def new(name: Name) -> Name:
        if isinstance(name, Frame):
            return replace(name, clip=names.get(name.clip, name.clip))
        return names.get(name, name) if isinstance(name, Ref) else name

    return renamed(formula, new)


# Running it.


class Environment:
    """The tensors of one run, by name."""

    def __init__(self, given: Mapping[str, Tensor], own: ReadOwn) -> None:
        self.tensors: dict[str, Tensor] = dict(given)
        self._own = own
        self._read: dict[str, Tensor] = {}

    def own(self, name: str) -> Tensor:
        """A parameter, read once: to read one that is computed may change it (spectral norm)."""
        if name not in self._read:
            self._read[name] = self._own(name)
        return self._read[name]

    def tensor(self, name: Name) -> Tensor:
        if isinstance(name, Frame):
            return self.tensors[name.clip.name].select(name.axis, name.index)
        return self.own(name.name) if isinstance(name, Own) else self.tensors[name.name]

    def argument(self, tree: Any) -> Any:
        if isinstance(tree, (Ref, Frame, Own)):
            return self.tensor(tree)
        if type(tree) is tuple:
            return [self.argument(item) for item in tree]
        return tree

    def built(self, tree: object) -> object:
        if isinstance(tree, (Ref, Frame, Own)):
            tensor = self.tensor(tree)
            return tensor.clone() if isinstance(tree, Frame) else tensor  # no view of another result
        if isinstance(tree, Nested):
            return tree.build([self.built(item) for item in tree.items])
        return tree


def run(formula: Formula, environment: Environment) -> object:
    """Makes every instruction; returns the result."""
    for instruction in formula.instructions:
        if isinstance(instruction, Step):
            environment.tensors[instruction.output.name] = _run_step(instruction, environment)
        elif isinstance(instruction, Scan):
            environment.tensors[instruction.output.name] = _run_scan(instruction, environment)
        else:
            kwargs = {name: environment.argument(value) for name, value in instruction.kwargs}
            results = instruction.function()(*(environment.argument(a) for a in instruction.args), **kwargs)
            for output, result in zip(
                instruction.outputs, (results,) if instruction.single else results, strict=True
            ):
                environment.tensors[output.name] = result
    return environment.built(formula.result)


def _run_step(step: Step, environment: Environment) -> Tensor:
    cell = step.cell
    parameters = cell.layout.parameters(environment.own)
    images = [_channels(environment.tensor(p.tensor), p.start, p.count) for p in cell.layout.pieces]
    state = cell.state
    h = functional.conv_gru_cell(
        _joined(images, 1),
        None if state is None else _channels(environment.tensor(state.tensor), state.start, cell.K),
        *parameters,
        gate_bias=_maps(cell, environment.tensor, environment.own),
        variant=cell.variant,
    )
    return h if h.dtype == step.dtype else h.to(step.dtype)


def _run_scan(scan: Scan, environment: Environment) -> Tensor:
    cell = scan.cell

    def clip(name: Name) -> Tensor:
        """(T,N,C,H,W)"""
        if isinstance(name, Frame):
            return environment.tensors[name.clip.name].movedim(name.axis, 0)
        return environment.tensor(name).expand(scan.steps, -1, -1, -1, -1)

    images = [_channels(clip(p.tensor), p.start, p.count, 2) for p in cell.layout.pieces]
    state = cell.state
    hx = None if state is None else _channels(environment.tensor(state.tensor), state.start, cell.K)
    x, gate_bias = _joined(images, 2), _maps(cell, clip, environment.own, 2)
    weight_ih, weight_hh, bias_ih, bias_hh = cell.layout.parameters(environment.own)
    backend = functional._choose_backend(weight_hh, cell.variant)
    layer = (weight_ih, weight_hh, bias_ih, bias_hh)
    return functional._run(backend, x, hx, layer, gate_bias, None, cell.variant, scan.reverse, False).to(
        scan.dtype
    )


def _channels(images: Tensor, start: int, count: int, axis: int = 1) -> Tensor:
    return images if count == images.shape[axis] else images.narrow(axis, start, count)


def _joined(images: list[Tensor], axis: int) -> Tensor | None:
    if len(images) < 2:
        return images[0] if images else None
    return torch.cat(images, axis)


def _maps(cell: Cell, find: Callable[[Name], Tensor], own: ReadOwn, axis: int = 1) -> Tensor | None:
    """gate_bias (N,3K,H,W) or (N,3K,1,1), with a leading T if axis is 2."""
    K = cell.K
    if not any(g.maps for g in cell.gates):
        return None

    def gate(g: Gate) -> Tensor | None:
        total = sum_of(scaled(_channels(find(m.tensor), m.start, K, axis), m.factor) for m in g.maps)
        if total is not None and cell.layout.bias_in_maps and g is cell.gates[2]:
            total = sum_of([total + g.constant, *(elements(own, b, K).view(K, 1, 1) for b in g.biases)])
        return total

    sums = [gate(g) for g in cell.gates]
    present = [total for total in sums if total is not None]
    zero = present[0].new_zeros(())
    shape = torch.broadcast_shapes(*(total.shape for total in present))
    return torch.cat([(zero if total is None else total).expand(shape) for total in sums], axis)
