"""The forward of a module whose cells are fused: same arguments, same result, weights from its parameters.
Where its code has not been understood and verified, that code runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .formula import Environment, Formula, run
from .recording import arguments_of, has_hooks, owners_of, submodules_of, weight_hooks
from .trial import Example, ReplacedForward, attribute_tensors, learn, read_own

logger = logging.getLogger("convgru_fused")

MOST_PLANS = 256  # kinds of calls remembered for a module

Verify = Callable[[nn.Module, Example, Formula], object]


class FusedForward(ReplacedForward):
    """Stands in the place of a module's forward.

    A call of a kind (shapes, types, which arguments are None, training or not, autocast, gradients) that has
    not been seen is looked at first: a copy of the module is run under the recorder. If it computes what has
    been verified, that is used from then on; if it is something new, it is verified; else the module's own
    code runs. So every kind of call is computed in one way, the first time as ever after.
    """

    def __init__(self, module: nn.Module, verify: Verify | None) -> None:
        self.module = module
        self.previous = module.__dict__.get("forward")
        self.verify = verify
        self.verified: set[object] = set()  # skeletons
        self.plans: dict[object, Formula | None] = {}
        self.structures: dict[object, Formula | None] = {}  # for torch.compile; None where there are several
        self.owners = {name: (child, attribute) for name, child, attribute in owners_of(module)}
        self.hooked = any(weight_hooks(child) for child, _ in self.owners.values())
        self.inside = [(child, dict(child._modules), _shapes(child)) for _, child in submodules_of(module)]
        self.tied = _tied(module)
        self.places = {path: child for path, child in submodules_of(module)}
        self.remembered: list[str] = []  # attributes that formulas read or set

    @property
    def __code__(self) -> CodeType:
        """The module's own, where torch.export reads the names of the arguments."""
        own = type(self.module).forward if self.previous is None else self.previous
        return own.__code__

    def install(self) -> None:
        self.module.__dict__["forward"] = self

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        formula = self._formula(args, kwargs)
        if formula is None:
            return self.original(*args, **kwargs)
        given = dict(arguments_of(args, kwargs))
        if self.remembered:
            given.update(attribute_tensors(self.module))
        environment = Environment(given, self._own)
        result = run(formula, environment)
        for name, tree in formula.effects:
            child, attribute = self._place(name)
            setattr(child, attribute, environment.built(tree))
        return result

    def _own(self, name: str) -> Tensor:
        child, attribute = self.owners[name]
        return read_own(child, attribute) if self.hooked else getattr(child, attribute)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        return self.places[path], attribute

    # Which formula.

    def add(self, example_args: tuple[Any, ...], example_kwargs: dict[str, Any], formula: Formula) -> None:
        """A formula that has been verified, for calls with such arguments."""
        self.verified.add(formula.skeleton())
        self._remember(formula)
        self.plans[self._key(example_args, example_kwargs)] = formula

    def add_structure(
        self,
        example_args: tuple[Any, ...],
        example_kwargs: dict[str, Any],
        formula: Formula,
        modes: tuple[bool, ...],
    ) -> None:
        """A formula that has been found to be the same whatever the sizes, in such modes."""
        structure = self._structure(example_args, example_kwargs, modes)
        known = self.structures.setdefault(structure, formula)
        if known is not None and known.skeleton() != formula.skeleton():
            self.structures[structure] = None

    def _remember(self, formula: Formula) -> None:
        names = [name for name, _ in formula.effects]
        names += [
            ref.name.removeprefix("self.").partition("[")[0]
            for ref in formula.inputs()
            if ref.name.startswith("self.")
        ]
        self.remembered += [name for name in dict.fromkeys(names) if name not in self.remembered]

    def _formula(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Formula | None:
        if self._is_changed():
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.structures.get(self._structure(args, kwargs, self._modes()))
        try:
            key = self._key(args, kwargs)
            if key in self.plans:
                return self.plans[key]
        except (TypeError, NotImplementedError):  # not hashable, or tensors of another kind
            return None
        if ops.under_transform() or not all(_is_plain(t) for _, t in arguments_of(args, kwargs)):
            return None
        if len(self.plans) >= MOST_PLANS:
            return None
        formula = self._learn(args, kwargs)
        # What the module remembers may have become known with it.
        self.plans[self._key(args, kwargs)] = formula
        return formula

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Formula | None:
        example = Example.of(args, kwargs)
        try:
            formula = learn(self.module, example)
            if not formula.has_state() and not self.verified:
                return None
            if formula.skeleton() not in self.verified:
                if self.verify is not None:
                    self.verify(self.module, example, formula)
                self.verified.add(formula.skeleton())
            self._remember(formula)
            return formula
        except Exception as error:  # the module's own code will raise it, if it is its own
            logger.debug("%s: own code for a new kind of call: %r", type(self.module).__name__, error)
            return None

    def _is_changed(self) -> bool:
        """Whether formulas may not hold any more: a submodule has been exchanged, or has hooks; a parameter
        has come, gone or got another shape; or what were two names of one tensor are two tensors."""
        for child, below, shapes in self.inside:
            if child._modules != below or (child is not self.module and has_hooks(child)):
                return True
            if _shapes(child) != shapes:
                return True
        return any(getattr(a, name) is not getattr(b, other) for a, name, b, other in self.tied)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        return (self._described(args, kwargs, _kind), self._modes(), torch.is_grad_enabled())

    def _structure(self, args: tuple[Any, ...], kwargs: dict[str, Any], modes: tuple[bool, ...]) -> object:
        return (self._described(args, kwargs, _outline), modes)

    def _described(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], describe: Callable[[Any], object]
    ) -> object:
        remembered = [getattr(*self._place(name), None) for name in self.remembered]
        autocast = ops.autocast_dtype(self.device_type(args, kwargs))
        return (describe(args), describe(kwargs), describe(remembered), autocast)

    def _modes(self) -> tuple[bool, ...]:
        return tuple([child.training for child, *_ in self.inside])

    def device_type(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        for _, tensor in arguments_of(args, kwargs):
            return tensor.device.type
        return "cpu"

    # Copies and pickles hold what has been verified, not the module's arguments.

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "plans": {}}


def unfuse(model: nn.Module) -> int:
    """Gives every module of a model its own forward back; returns how many were fused.

    Raises:
        TypeError: model is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    fused = [
        child for _, child in submodules_of(model) if isinstance(child.__dict__.get("forward"), FusedForward)
    ]
    for child in fused:
        child.__dict__["forward"].remove_from(child)
    return len(fused)


def _shapes(module: nn.Module) -> dict[str, torch.Size | None]:
    """Those of its parameters and buffers, by name."""
    tensors: Mapping[str, Tensor | None] = module._parameters
    if module._buffers:  # seldom, and this runs at every call
        tensors = {**tensors, **module._buffers}
    return {name: None if tensor is None else tensor.shape for name, tensor in tensors.items()}


def _tied(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """Parameters and buffers that are one tensor under several names, which a formula has one name for."""
    first: dict[int, tuple[nn.Module, str]] = {}
    tied = []
    for _, child in submodules_of(module):
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None and first.setdefault(id(tensor), (child, name)) != (child, name):
                tied.append((*first[id(tensor)], child, name))
    return tied


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)


def _kind(tree: Any) -> object:
    """What decides which way a module's code takes."""
    if isinstance(tree, Tensor):
        return (tree.shape, tree.dtype, tree.device)
    if isinstance(tree, (list, tuple)):
        return (type(tree), *map(_kind, tree))
    if isinstance(tree, dict):
        return (dict, *((key, _kind(value)) for key, value in tree.items()))
    return (type(tree), tree)  # True is no 1


def _outline(tree: Any) -> object:
    """`_kind` without sizes."""
    if isinstance(tree, Tensor):
        return (tree.dim(), str(tree.dtype))
    if isinstance(tree, (list, tuple)):
        return tuple(_outline(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _outline(value)) for key, value in tree.items())
    return (type(tree), tree)
