"""Steps that follow each other with the same weights become one sequence, so that the input convolution of
all of them is one convolution and the loop over time is the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .channels import Channels, Frame, Leaf, Name, Ref
from .formula import Instruction, Scan, inputs_of, names_in, outputs_of, renamed
from .recognition import Cell, Gate
from .recording import Call, Recording, Step


@dataclass
class Rolled:
    """Instructions with scans in them, and what became of the tensors that the steps had made."""

    instructions: list[Instruction]
    names: dict[Ref, Name]

    def new(self, name: Name) -> Name:
        """Where a tensor is now."""
        return _found(name, self.names)


def _found(name: Name, names: Mapping[Ref, Name]) -> Name:
    return names.get(name, name) if isinstance(name, Ref) else name


def roll(instructions: Sequence[Instruction], recording: Recording) -> Rolled:
    """Rolls up every chain of steps that can be."""
    rolled = Rolled(list(instructions), {})
    lengths: dict[Name, tuple[int, ...]] = dict(recording.shapes)
    while True:
        for chain in _chains([i for i in rolled.instructions if isinstance(i, Step)]):
            scan = Ref(f"scan {len(rolled.names)}")
            made = _scan(chain, scan, lengths)
            if made is None:
                continue
            names = {step.output: Frame(scan, 0, t) for step, t in zip(chain, made.times, strict=True)}
            mixed = _replaced(rolled.instructions, chain, made, names)
            if mixed is not None:
                rolled.instructions = mixed
                rolled.names.update(names)
                lengths[scan] = (len(chain),)
                break
        else:
            break
    scans = {i.output: i for i in rolled.instructions if isinstance(i, Scan)}
    if scans:
        _unstack(rolled, scans, recording)
    return rolled


def _chains(steps: list[Step]) -> Iterator[list[Step]]:
    """Steps each of which takes its state from the one before."""
    after: dict[Ref, list[Step]] = {}
    for step in steps:
        state = step.cell.state
        if state is not None and isinstance(state.tensor, Ref) and state.start == 0:
            after.setdefault(state.tensor, []).append(step)
    begun: set[Ref] = set()
    for step in steps:
        if step.output in begun:
            continue
        chain = [step]
        while True:
            following = [s for s in after.get(chain[-1].output, []) if _alike(chain[-1].cell, s.cell)]
            if not following:
                break
            chain.append(following[0])
        begun.update(s.output for s in chain)
        if len(chain) > 1:
            yield chain


def _without_names(gates: Sequence[Gate]) -> object:
    return renamed(tuple(gates), lambda name: Ref(""))


def _alike(a: Cell, b: Cell) -> bool:
    """Whether two steps have the same weights. One without a state may be without its reset gate."""
    first = 1 if a.state is None and a.gates[0] == Gate() else 0
    return (a.variant, a.K) == (b.variant, b.K) and (
        _without_names(a.gates[first:]) == _without_names(b.gates[first:])
    )


@dataclass
class _Made:
    scan: Scan
    before: list[Call]
    times: list[int]  # of the steps


def _scan(chain: list[Step], output: Ref, lengths: Mapping[Name, tuple[int, ...]]) -> _Made | None:
    cells = [step.cell for step in chain]
    T = len(cells)
    known = cells[1].gates if cells[0].gates[0] == Gate() else cells[0].gates
    columns = [list(names_in(cell.gates)) for cell in cells[1:]]
    first = list(names_in(cells[0].gates))
    missing = len(columns[0]) - len(first)  # names of the reset gate, which a first step without state lacks
    if missing and T == 2:
        return None  # one name of each: no telling whether it moves
    before: list[Call] = []
    replaced: list[Name] = []
    directions: set[int] = set()
    for j in range(len(columns[0])):
        names = [column[j] for column in columns]
        if j >= missing:
            names.insert(0, first[j - missing])
        if len(set(names)) == 1:
            name = names[0]
            if isinstance(name, Frame):  # the same in every step: not a clip
                fixed = Ref(f"{output.name} part {len(before)}")
                before.append(_call("select", "int", (name.clip, name.axis, name.index), fixed))
                name = fixed
            replaced.append(name)
            continue
        frames = [name for name in names if isinstance(name, Frame)]
        if len(frames) < len(names) or len({(f.clip, f.axis) for f in frames}) > 1:
            return None
        direction = frames[1].index - frames[0].index
        if direction not in (1, -1) or any(
            b.index - a.index != direction for a, b in zip(frames, frames[1:], strict=False)
        ):
            return None
        directions.add(direction)
        start = min(f.index for f in frames) - (direction == 1 and j < missing)
        clip = frames[0].clip
        length = lengths[clip][frames[0].axis]
        if start < 0 or start + T > length:
            return None
        if (start, T) != (0, length):
            part = Ref(f"{output.name} part {len(before)}")
            before.append(_call("slice", "Tensor", (clip, frames[0].axis, start, start + T, 1), part))
            clip = part
        replaced.append(Frame(clip, frames[0].axis, 0))
    if len(directions) > 1:
        return None
    reverse = directions == {-1}
    following = iter(replaced)
    gates = renamed(tuple(known), lambda _: next(following))
    cell = replace(cells[0], gates=gates)
    times = [T - 1 - t if reverse else t for t in range(T)]
    return _Made(Scan(cell, T, reverse, output, chain[-1].dtype), before, times)


def _call(operator: str, overload: str, args: tuple[object, ...], output: Ref, **kwargs: object) -> Call:
    return Call(f"aten::{operator}", overload, args, tuple(kwargs.items()), (output,), True)


def _replaced(
    instructions: list[Instruction], chain: list[Step], made: _Made, names: Mapping[Ref, Name]
) -> list[Instruction] | None:
    """Instructions with a scan in the place of a chain, in an order that can be run; None if none can."""
    mixed: list[Instruction] = []
    for instruction in instructions:
        if isinstance(instruction, Step) and instruction.output in names:
            if instruction is chain[-1]:
                mixed += [*made.before, made.scan]
        else:
            mixed.append(renamed(instruction, lambda name: _found(name, names)))
    return _sorted(mixed)


def _sorted(instructions: list[Instruction]) -> list[Instruction] | None:
    """Each after those that it needs, otherwise as they come; None if they need each other."""
    missing = {output for instruction in instructions for output in outputs_of(instruction)}
    done: list[Instruction] = []
    waiting = instructions
    while waiting:
        later = []
        for instruction in waiting:
            if missing.isdisjoint(inputs_of(instruction)):
                done.append(instruction)
                missing.difference_update(outputs_of(instruction))
            else:
                later.append(instruction)
        if len(later) == len(waiting):
            return None
        waiting = later
    return done


def _unstack(rolled: Rolled, scans: Mapping[Ref, Scan], recording: Recording) -> None:
    """What the module stacks is what a scan has made: not put together from frames again."""
    instructions: list[Instruction] = []
    for instruction in rolled.instructions:
        outputs = outputs_of(instruction)
        stack = recording.stacks.get(outputs[0]) if len(outputs) == 1 else None
        sources = None if stack is None else _sources(stack.frames, rolled.new, scans)
        if stack is None or sources is None:
            instructions.append(instruction)
        else:
            instructions += _whole(sources, stack.axis, outputs[0])
    rolled.instructions = instructions
    # The last of any number of steps.
    last = {Frame(ref, 0, scan.steps - 1): Frame(ref, 0, -1) for ref, scan in scans.items()}
    for ref, name in rolled.names.items():
        assert isinstance(name, Frame)
        rolled.names[ref] = last.get(name, name)


def _sources(
    frames: Sequence[Channels], new: Callable[[Name], Name], scans: Mapping[Ref, Scan]
) -> list[tuple[Ref, bool]] | None:
    """The scans whose outputs, joined along the channels, are these frames; and whether backwards."""
    sources: list[tuple[Ref, bool]] = []
    for parts in zip(*(frame.ranges for frame in frames), strict=False):
        found: list[Frame] = []
        for part in parts:
            leaf = part.poly.single()
            name = new(leaf.tensor) if isinstance(leaf, Leaf) and leaf.start == 0 else None
            scan = scans.get(name.clip) if isinstance(name, Frame) else None
            if scan is None or part.count != scan.cell.K or scan.steps != len(frames):
                return None
            assert isinstance(name, Frame)
            found.append(name)
        times = [name.index for name in found]
        forwards = list(range(len(frames)))
        if len({name.clip for name in found}) > 1 or times not in (forwards, forwards[::-1]):
            return None
        sources.append((found[0].clip, times != forwards))
    same = len({len(frame.ranges) for frame in frames}) == 1
    return sources if same and sources else None


def _whole(sources: list[tuple[Ref, bool]], axis: int, output: Ref) -> Iterator[Call]:
    parts: list[Ref] = []
    for scan, backwards in sources:
        parts.append(Ref(f"{output.name} of {scan.name}") if backwards else scan)
        if backwards:
            yield _call("flip", "default", (scan, (0,)), parts[-1])
    joined = parts[0]
    if len(parts) > 1:
        joined = Ref(f"{output.name} joined")
        yield _call("cat", "default", (tuple(parts), 2), joined)
    turned = joined
    if axis == 1:
        turned = Ref(f"{output.name} turned")
        yield _call("transpose", "int", (joined, 0, 1), turned)
    # As torch.stack leaves it in memory.
    yield _call("clone", "default", (turned,), output, memory_format=torch.contiguous_format)
