"""Trying a module on a copy of it: what it computes, and whether a formula computes the same."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .channels import Channels, Own
from .formula import (
    Formula,
    Nested,
    names_in,
    needed,
    numbered,
    refs_in,
    renamed,
)
from .recognition import Context, NoCell, recognise
from .recording import (
    Recorder,
    Recording,
    SeeDetach,
    Step,
    arguments_of,
    attributes_of,
    has_hooks,
    owners_of,
    submodules_of,
    tensors_of,
    weight_hooks,
)
from .rolling import roll
from .values import Image

# Types of arguments that say all by their value.
CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
MOST_CALLS = 48  # of operators around the steps; DROID-SLAM's cell has some twenty


class Refused(Exception):
    """Why a module is left as it is. like_a_cell: whether one would have expected a ConvGRU there."""

    def __init__(self, reason: str, like_a_cell: bool = True) -> None:
        super().__init__(reason)
        self.like_a_cell = like_a_cell


# Calls with other values.


@dataclass(frozen=True)
class TensorLike:
    """A tensor of which shape, type and place count; of integers the values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    requires_grad: bool
    values: Tensor | None

    @property
    def has_images(self) -> bool:
        """Whether it is (N,C,H,W) or has a time axis before that."""
        return len(self.shape) in (4, 5) and self.values is None

    @staticmethod
    def of(tensor: Tensor) -> TensorLike:
        floating = tensor.is_floating_point()
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return TensorLike(
            tuple(tensor.shape),
            tensor.dtype,
            tensor.device,
            last and not tensor.is_contiguous(),
            tensor.requires_grad,
            None if floating else tensor.detach().clone(),
        )

    def make(self, generator: torch.Generator) -> Tensor:
        if self.values is not None:
            return self.values.clone()
        tensor = torch.randn(self.shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        if self.channels_last:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor.requires_grad_(self.requires_grad and torch.is_grad_enabled())


@dataclass(frozen=True)
class Example:
    """The arguments of a call, tensors by their likes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
        return Example(mapped(args, Tensor, TensorLike.of), mapped(kwargs, Tensor, TensorLike.of))

    def changed(self, change: Callable[[TensorLike], TensorLike]) -> Example:
        return Example(mapped(self.args, TensorLike, change), mapped(self.kwargs, TensorLike, change))

    def objects(self) -> Iterator[Any]:
        """What is no tensor and no constant, in lists, tuples and dicts too."""
        leaves = (leaf for tree in (self.args, self.kwargs) for leaf in _leaves(tree))
        return (leaf for leaf in leaves if not isinstance(leaf, (TensorLike, *CONSTANTS)))

    def make(self, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            mapped(tree, TensorLike, lambda like: like.make(generator)) for tree in (self.args, self.kwargs)
        )  # type: ignore[return-value]


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list, tuple)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(item)
    else:
        yield tree


def mapped(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dicts with a function of what is of a kind."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, kind, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [mapped(item, kind, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


# Modules on trial.


class ReplacedForward:
    """What stands in the place of a module's forward; `previous` is what the module itself had there."""

    previous: Any = None

    def remove_from(self, module: nn.Module) -> None:
        del module.__dict__["forward"]
        if self.previous is not None:
            module.__dict__["forward"] = self.previous


_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def copied(module: nn.Module) -> nn.Module:
    """A copy with nothing fused in it. Tensors among its attributes need not be leaves of a graph; hooks are
    shared, since whose methods they are does not belong to the module."""
    memo: dict[int, Any] = {}
    seen: set[int] = set()
    for _, child in submodules_of(module):
        for name in _HOOKS:
            memo.update({id(hook): hook for hook in getattr(child, name).values()})
        for _, value in attributes_of(child):
            for tensor in _tensors_within(value, seen):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone().requires_grad_()
    copied = copy.deepcopy(module, memo)
    for _, child in submodules_of(copied):
        replaced = child.__dict__.get("forward")
        if isinstance(replaced, ReplacedForward):
            replaced.remove_from(child)
    return copied


def _tensors_within(value: object, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that an object holds, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module) or id(value) in seen:
        return
    elif isinstance(value, (list, tuple, set)):
        seen.add(id(value))
        for item in value:
            yield from _tensors_within(item, seen)
    elif isinstance(value, dict) or (
        hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType))
    ):
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else vars(value).values():
            yield from _tensors_within(item, seen)


def attribute_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, child in submodules_of(module):
        for name, value in attributes_of(child):
            yield from tensors_of(value, f"self.{path}.{name}" if path else f"self.{name}")


@contextmanager
def apart() -> Iterator[None]:
    """For runs that the caller is not to notice: no numbers drawn of theirs, nothing saved by their hooks."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state = random.getstate()
    with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        try:
            yield
        finally:
            random.setstate(state)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def read_own(child: nn.Module, name: str) -> Tensor:
    """A parameter or buffer; computed, if it is computed before each forward."""
    for hook in weight_hooks(child):
        if hook.name == name:
            hook(child, None)
    return getattr(child, name)


@contextmanager
def _without_weight_hooks(module: nn.Module) -> Iterator[None]:
    """Weights that hooks compute are computed once, and stay."""
    hooked = [
        (child, dict(child._forward_pre_hooks)) for _, child in submodules_of(module) if weight_hooks(child)
    ]
    for child, hooks in hooked:
        for key, hook in hooks.items():
            if hook in weight_hooks(child):
                hook(child, None)
                del child._forward_pre_hooks[key]
    try:
        yield
    finally:
        for child, hooks in hooked:
            child._forward_pre_hooks.update(hooks)


def hooked_inside(module: nn.Module) -> str:
    """The path of a submodule with hooks, which would not be called; "" if there is none."""
    for path, child in submodules_of(module):
        if child is not module and has_hooks(child):
            return path
    return ""


# What it computes.


def looks_recurrent(module: nn.Module) -> bool:
    """Whether its code, or what it inherits, speaks of what a GRU's does."""
    codes = (getattr(vars(cls).get("forward"), "__code__", None) for cls in type(module).__mro__)
    return any({"sigmoid", "tanh"} <= set(code.co_names) for code in codes if code is not None)


def learn(module: nn.Module, example: Example) -> Formula:
    """The formula of a module for such arguments. The module is not run, a copy is.

    Raises:
        Refused: there is none, or it is not that of a recurrent cell.
        Exception: whatever the module raises.
    """
    hooked = hooked_inside(module)
    grad = torch.is_grad_enabled()  # the end of inference mode switches it on
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        if hooked:
            reason = f"a hook on its submodule {hooked!r}, which would not be called"
            raise Refused(reason, looks_recurrent(module))
        for value in example.objects():
            reason = f"an argument is a {type(value).__name__}, which may change unseen"
            raise Refused(reason, looks_recurrent(module))
        args, kwargs = example.make(0)
        return _formula(copied(module), args, kwargs)


def _formula(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Formula:
    reasons: list[str] = []

    def matched(image: Channels, tensor: Tensor, recording: Recording, at_end: bool = False) -> object:
        context = Context(recording.names, recording.operators, recording.shapes)
        try:
            return recognise(image, (tensor.shape[0], *tensor.shape[2:]), context, at_end)
        except NoCell as error:
            reasons.append(str(error))
            return None

    recorder = Recorder(matched)
    recording = recorder.recording
    owners = list(owners_of(module))
    with apart(), parametrize.cached(), _without_weight_hooks(module):
        for name, tensor in attribute_tensors(module):
            recorder.add_leaf(name, tensor)
        for name, child, attribute in owners:
            recorder.add_parameter(name, getattr(child, attribute))
        for name, tensor in arguments_of(args, kwargs):
            recorder.add_leaf(name, tensor)
        before = {name: _noted(value) for name, value in _attributes(module).items()}
        held, given = _held(module), _noted((args, kwargs))
        state = random.getstate()
        with SeeDetach(recorder), recorder:
            result = module.forward(*args, **kwargs)
        draws = random.getstate() != state
    like_a_cell = {"tanh", "convolution"} <= recording.functions and bool(
        {"sigmoid", "hardsigmoid"} & recording.functions
    )
    if held != _held(module):
        recording.refusal = recording.refusal or "its forward exchanges a parameter or buffer"
    if not _same(given, _noted((args, kwargs))):
        raise Refused("its forward changes a list or dict that it is given", like_a_cell)
    if draws:
        raise Refused("it draws random numbers of Python's", like_a_cell)
    if recording.depends_on_values:
        raise Refused("its control flow depends on values of tensors", like_a_cell)
    if recording.refusal:
        raise Refused(reasons[-1] if reasons else recording.refusal, like_a_cell)

    def template(tree: Any) -> object:
        if isinstance(tree, Tensor):
            value, name = recorder.get(tree), recorder.name(tree)
            cell = matched(value.channels, tree, recording, at_end=True) if isinstance(value, Image) else None
            for made in recording.instructions:
                # A sum with zeros, of a state that is absent, may have another type all the same.
                if isinstance(made, Step) and made.output == name and made.dtype != tree.dtype:
                    cell = made.cell
            if cell is None:
                return recorder.result(tree)
            step = Step(cell, recorder.new("step"), tree.dtype)
            recording.instructions.append(step)
            return step.output
        if isinstance(tree, dict) and type(tree) is dict:
            return Nested(dict, tuple(template(item) for item in tree.values()), tuple(tree))
        if type(tree) in (list, tuple) or hasattr(tree, "_fields"):
            return Nested(type(tree), tuple(template(item) for item in tree))
        if tree is None or isinstance(tree, (int, float, str, bool)):
            return tree
        raise Refused(f"its result has a {type(tree).__name__} in it")

    templates = template(result)
    after = _attributes(module)
    effects = tuple(
        (name, template(value))
        for name, value in after.items()
        if not _same(before.get(name, _NOTHING), _noted(value))
    )
    gone = [name for name in before if name not in after]
    if gone:
        raise Refused(f"its forward deletes the attribute {gone[0]!r}")
    for name, tree in effects:
        if not _has_tensors(tree) and not _has_tensors(before.get(name)):
            raise Refused(f"its forward changes the attribute {name!r}")
    if not any(isinstance(i, Step) for i in needed(recording.instructions, refs_in((templates, effects)))):
        if reasons:
            raise Refused(reasons[-1])
        raise Refused("no state that a sigmoid gate blends with something", like_a_cell)
    return _finished(recording, templates, effects, _moving(module))


def _moving(module: nn.Module) -> set[str]:
    """Weights that are other ones at every use: those of spectral norm, while training."""
    found = set()
    for name, child, attribute in owners_of(module):
        parametrised = getattr(child, "parametrizations", {})
        computed = attribute in parametrised and any(True for _ in parametrised[attribute].buffers())
        hooked = any(
            hook.name == attribute and hasattr(hook, "n_power_iterations") for hook in weight_hooks(child)
        )
        if child.training and (computed or hooked):
            found.add(name)
    return found


_NOTHING = object()


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module and its submodules by name."""
    return {
        f"{path}.{name}" if path else name: value
        for path, child in submodules_of(module)
        for name, value in attributes_of(child)
    }


def _noted(tree: Any) -> Any:
    """What nested lists, tuples and dicts hold now, whatever is changed in them later."""
    if isinstance(tree, dict):
        return type(tree), {key: _noted(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree), [_noted(item) for item in tree]
    return tree


def _held(module: nn.Module) -> list[list[int]]:
    """Which parameters and buffers the modules hold."""
    return [
        [id(tensor) for tensor in (*child._parameters.values(), *child._buffers.values())]
        for _, child in submodules_of(module)
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or (isinstance(a, (int, float, str)) and type(a) is type(b) and a == b)


def _has_tensors(tree: object) -> bool:
    return next(names_in(tree), None) is not None or next(tensors_of(tree, ""), None) is not None


def _finished(
    recording: Recording, result: object, effects: tuple[tuple[str, object], ...], moving: set[str]
) -> Formula:
    """What of a recording is needed, with sequences in it."""
    instructions = needed(recording.instructions, refs_in((result, effects)))
    uses = Counter(
        name
        for i in instructions
        if isinstance(i, Step)
        for name in {weight.name for weight in i.cell.weights()} & moving
    )
    if uses and max(uses.values()) > 1:
        raise Refused("steps with the same weight, which training changes from step to step")
    rolled = roll(instructions, recording)
    result, effects = renamed(result, rolled.new), renamed(effects, rolled.new)
    formula = Formula(tuple(needed(rolled.instructions, refs_in((result, effects)))), result, effects)
    for ref in formula.inputs():
        if ref in recording.lost:
            raise Refused(f"it needs the result of {recording.lost[ref]} which cannot be had again")
    _check_calls(formula)
    formula = numbered(formula)
    for cell in formula.cells():
        try:
            cell.layout  # noqa: B018  made now, so that it need not be in the first call
        except ValueError as error:
            raise Refused(str(error)) from None
    return formula


def _check_calls(formula: Formula) -> None:
    calls = formula.calls()
    if len(calls) > MOST_CALLS:
        raise Refused(
            f"a step of a ConvGRU is written out among {len(calls)} other operators; "
            "convgru_fused.functional.conv_gru_cell can be called there"
        )
    fused = {weight.name for cell in formula.cells() for weight in cell.weights()}
    again = {name.name for name in names_in(tuple(calls)) if isinstance(name, Own)} & fused
    if again:
        raise Refused(
            f"its result holds more of a step than the state: something else is made with {again.pop()}"
        )
