"""What a module computes: its forward is run once, and the tensor operators that PyTorch dispatches are
followed by what they do to channels.

Whatever the module is made of (submodules, functions, methods, a convolution given raw parameters) ends up as
the same few operators. Each is noted as a `Call`, to be made again if its result is needed; what it makes is
known as polynomials where it can be, else as a new unknown, whose name is all that can be said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .channels import Channels, Frame, Leaf, Name, Own, Poly, Ref, TooManyTerms, Vector
from .rules import follow
from .values import Clip, Image, NotFollowed, Parameter, Stack, Unknown, Value, adds_by_channel, is_vector

aten = torch.ops.aten

Found = TypeVar("Found")

DEEPEST = 8  # the candidate of a step has 4: tanh of a convolution of the sigmoid of a convolution


@dataclass(frozen=True)
class Call:
    """An operator of PyTorch's; tensors among its arguments are named."""

    operator: str
    overload: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[Ref, ...]
    single: bool  # whether it returns a tensor, not several

    def function(self) -> Any:
        return _operator(self.operator, self.overload)


@cache
def _operator(name: str, overload: str) -> Any:
    namespace, _, packet = name.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


# Names of tensors in arguments, results and modules.


def found_in(tree: object, kind: type[Found], name: str) -> Iterator[tuple[str, Found]]:
    """What is of a kind in nested lists, tuples and dicts, by where it is."""
    if isinstance(tree, kind):
        yield name, tree
    elif isinstance(tree, (list, tuple)):
        for i, item in enumerate(tree):
            yield from found_in(item, kind, f"{name}[{i}]")
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from found_in(item, kind, f"{name}[{key!r}]")


def tensors_of(tree: object, name: str) -> Iterator[tuple[str, Tensor]]:
    return found_in(tree, Tensor, name)


def arguments_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from tensors_of(args, "args")
    yield from tensors_of(kwargs, "kwargs")


_INTERNAL = frozenset(vars(nn.Module()))


def attributes_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds beside parameters, buffers, submodules and hooks."""
    return ((name, value) for name, value in vars(module).items() if name not in _INTERNAL)


def submodules_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and all under it, by path, each once; those in plain lists and dicts as well."""
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module
        prefix = path + "." if path else ""
        for name, child in module._modules.items():
            if child is not None:
                yield from visit(prefix + name, child)
        for name, value in attributes_of(module):
            for where, child in found_in(value, nn.Module, prefix + name):
                yield from visit(where, child)

    return visit("", module)


def owners_of(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """A module's parameters and buffers, with those that parametrisations and the hooks of torch.nn.utils'
    weight_norm and spectral_norm compute: name, the module that has it, its name there."""
    for path, child in submodules_of(module):
        names = [
            name
            for name, tensor in (*child._parameters.items(), *child._buffers.items())
            if tensor is not None
        ]
        names += list(getattr(child, "parametrizations", {}))
        names += [hook.name for hook in weight_hooks(child)]
        for name in names:
            yield f"{path}.{name}" if path else name, child, name


def weight_hooks(module: nn.Module) -> list[Any]:
    """Hooks that compute a weight before the forward: torch.nn.utils' weight_norm and spectral_norm."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _WEIGHT_HOOKS)]


_WEIGHT_HOOKS = (
    nn.utils.weight_norm.__globals__["WeightNorm"],
    nn.utils.spectral_norm.__globals__["SpectralNorm"],
)


def has_hooks(module: nn.Module) -> bool:
    """Whether it has hooks on its forward or backward, but those that compute a weight."""
    return bool(
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or len(module._forward_pre_hooks) > len(weight_hooks(module))
    )


# The recorder.


@dataclass(frozen=True)
class Step:
    """A step of a ConvGRU, found by `matched`."""

    cell: Any
    output: Ref
    dtype: torch.dtype = field(compare=False)


@dataclass
class _Entry:
    value: Value
    name: Name


@dataclass
class Recording:
    """The operators that ran, and the steps found among them."""

    instructions: list[Call | Step] = field(default_factory=list)
    # Of images of one range that some tensor has been; and their channels.
    names: dict[Poly, list[tuple[Name, int]]] = field(default_factory=dict)
    lost: dict[Ref, str] = field(default_factory=dict)  # tensors that no call makes again, and why
    operators: dict[Ref, str] = field(default_factory=dict)  # those not looked into, and what made them
    shapes: dict[Name, tuple[int, ...]] = field(default_factory=dict)
    stacks: dict[Ref, Stack] = field(default_factory=dict)  # those made of images
    functions: set[str] = field(default_factory=set)  # the operators that ran
    depends_on_values: bool = False
    refusal: str = ""  # why nothing can be made of it


def autocasting() -> set[str]:
    return {device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)}


class Recorder(TorchDispatchMode):
    """Follows the operators that run while it is entered.

    `matched` gets every image that is made, and says which cell it is a step of, if it is. A tensor is known
    by its memory and how it lies in it: autograd makes new views of the same.
    """

    def __init__(self, matched: Callable[[Channels, Tensor, Recording], Any]) -> None:
        super().__init__()
        self.recording = Recording()
        self.detaching = False
        # Whose conversions are none of the module's. Within them autocast says that it is off.
        self.autocast = autocasting()
        self._matched = matched
        self._entries: dict[int, dict[tuple[object, ...], _Entry]] = {}
        self._storages: dict[int, StorageWeakRef] = {}  # whose address is not used again while it is here
        self._external: set[int] = set()
        self._places: dict[Name, int] = {}  # the memory in which a tensor got its name
        self._grad = torch.is_grad_enabled()
        self._counts = {"step": 0, "value": 0}

    # Tensors.

    @staticmethod
    def _layout(tensor: Tensor) -> tuple[object, ...]:
        return (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)

    def set(self, tensor: Tensor, value: Value, name: Name) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._storages:
            self._storages[address] = StorageWeakRef(storage)
        self._places.setdefault(name, address)
        self._entries.setdefault(address, {})[self._layout(tensor)] = _Entry(value, name)
        if isinstance(value, Image) and len(value.channels.ranges) == 1:
            (part,) = value.channels.ranges
            self.recording.names.setdefault(part.poly, []).append((name, part.count))
        self.recording.shapes[name] = tuple(tensor.shape)
        if isinstance(value, Stack) and isinstance(name, Ref):
            self.recording.stacks[name] = value

    def _entry(self, tensor: Tensor) -> _Entry:
        entries = self._entries.get(tensor.untyped_storage()._cdata, {})
        entry = entries.get(self._layout(tensor))
        if entry is None:
            reason = "a tensor that comes from elsewhere"
            name = self._lost(reason)
            entry = _Entry(self._unknown(tensor, name, reason), name)
        return entry

    def get(self, tensor: Tensor) -> Value:
        return self._entry(tensor).value

    def name(self, tensor: Tensor) -> Name:
        return self._entry(tensor).name

    def new(self, kind: str) -> Ref:
        self._counts[kind] += 1
        return Ref(f"{kind} {self._counts[kind] - 1}")

    def _lost(self, reason: str) -> Ref:
        ref = self.new("value")
        self.recording.lost[ref] = reason
        return ref

    def _unknown(self, tensor: Tensor, name: Ref, reason: str) -> Value:
        self.recording.operators[name] = reason
        if tensor.is_floating_point() and tensor.dim() == 4:
            return Image(Channels.of(Leaf(name), tensor.shape[1]))
        if tensor.is_floating_point() and tensor.dim() == 5:
            return Clip(name)
        return Unknown(reason)

    def add_leaf(self, name: str, tensor: Tensor) -> None:
        self._external.add(tensor.untyped_storage()._cdata)
        self.set(tensor, self._unknown(tensor, Ref(name), name), Ref(name))

    def add_parameter(self, name: str, tensor: Tensor) -> None:
        self._external.add(tensor.untyped_storage()._cdata)
        whole = (*tensor.shape[:2], 1, 1)[:2]
        self.set(tensor, Parameter(name, is_vector(tensor), whole), Own(name))

    def result(self, tensor: Tensor) -> Name:
        """The name of a tensor that the caller gets: of a copy, if it has the name of one that it is equal to
        and shares no memory with. The caller may change either."""
        name = self.name(tensor)
        if self._places.get(name) in (None, tensor.untyped_storage()._cdata):
            return name
        copy = self.new("value")
        dtype = ("dtype", tensor.dtype)
        self.recording.instructions.append(
            Call("aten::_to_copy", "default", (name,), (dtype,), (copy,), True)
        )
        return copy

    # Operators.

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _depends_on_values(func, args, kwargs):
            self.recording.depends_on_values = True
        if func.overloadpacket is aten.detach:
            if not self.detaching:  # autograd's own
                return result
            result = result.clone()  # so that it is not taken for what it was detached from
        outputs = [result] if isinstance(result, Tensor) else result
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(o, Tensor) for o in outputs):
            return result
        self.recording.functions.add(func.overloadpacket.__name__)
        refs = self._call(func, args, kwargs, len(outputs), isinstance(result, Tensor))
        try:
            values = self._follow(func, args, kwargs, result)
        except NotFollowed as error:
            values = [Unknown(str(error))] * len(outputs)
        except TooManyTerms:
            values = [Unknown("a long formula")] * len(outputs)
        if func._schema.is_mutable:
            self._forget(func, args, kwargs)
        for tensor, value, ref in zip(outputs, values, refs, strict=True):
            self._add(tensor, value, ref, func.overloadpacket is aten.clone)
        return result

    def _add(self, tensor: Tensor, value: Value, ref: Name, copies: bool) -> None:
        if isinstance(value, Image):
            cell = self._matched(value.channels, tensor, self.recording)
            if cell is not None:
                ref = self.new("step")
                self.recording.instructions.append(Step(cell, ref, tensor.dtype))
                value = Image(Channels.of(Leaf(ref), value.channels.count))
            elif (same := self._same_as(value.channels, tensor)) is not None and not copies:
                ref = same
            elif value.channels.depth > DEEPEST:
                value = Unknown("a deeper network")
        if isinstance(value, Unknown):
            assert isinstance(ref, Ref)
            value = self._unknown(tensor, ref, value.reason)
        self.set(tensor, value, ref)

    def _same_as(self, channels: Channels, tensor: Tensor) -> Name | None:
        """The tensor that an image is equal to, as h is to 0 + h."""
        if len(channels.ranges) != 1:
            return None
        leaf = channels.ranges[0].poly.single()
        if not isinstance(leaf, Leaf) or isinstance(leaf.tensor, Frame):
            return None
        return leaf.tensor if self.recording.shapes.get(leaf.tensor) == tuple(tensor.shape) else None

    def _call(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        count: int,
        single: bool,
    ) -> tuple[Ref, ...]:
        """Notes a call of the operator, or of its functional twin if it works in place; names its results."""
        function, reason = func, ""
        if torch.is_grad_enabled() != self._grad:
            reason = "an operator with gradients switched off or on"
        if func._schema.is_mutable:
            twin = _functional(func)
            if twin is None:
                reason = f"{func}, which works in place,"
            else:
                function = twin
        if any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values())):
            reason = "a random generator"
        if reason:
            return tuple(self._lost(reason) for _ in range(count))
        call = Call(
            function._schema.name,
            function._schema.overload_name or "default",
            tuple(self._named(a) for a in args),
            tuple((k, self._named(v)) for k, v in kwargs.items()),
            tuple(self.new("value") for _ in range(count)),
            single,
        )
        self.recording.instructions.append(call)
        return call.outputs

    def _named(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.name(argument)
        if isinstance(argument, (list, tuple)):
            return tuple(self._named(item) for item in argument)
        return argument

    def _forget(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What is known of memory that an operator has written to."""
        for argument, given in bound(func, args, kwargs).items():
            if not _is_written(func, argument):
                continue
            for _, tensor in tensors_of(given, ""):
                address = tensor.untyped_storage()._cdata
                if address in self._external:
                    self.recording.refusal = f"{func.overloadpacket} changes a tensor that is not its own"
                reason = f"memory that {func.overloadpacket} wrote to"
                for entry in self._entries.get(address, {}).values():
                    entry.value, entry.name = Unknown(reason), self._lost(reason)

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[Value]:
        if torch.is_grad_enabled() != self._grad:
            raise NotFollowed("an operator with gradients switched off or on")
        value = follow(self, func, bound(func, args, kwargs), result)
        return value if isinstance(value, list) else [value]

    # For rules.

    def image(self, argument: Any) -> Channels:
        """The channels of an image, or of a parameter that is one or is spread over one."""
        value = self.get(argument)
        if isinstance(value, Image):
            return value.channels
        if isinstance(value, Parameter) and value.vector and adds_by_channel(argument):
            return Channels.of(Vector(value.name, sum(value.start)), argument.shape[-3])
        if isinstance(value, Parameter) and argument.dim() == 4 and argument.is_floating_point():
            return Channels.of(Leaf(self.name(argument)), argument.shape[1])
        raise NotFollowed(value.reason if isinstance(value, Unknown) else f"a {type(value).__name__.lower()}")

    def operand(self, argument: Any, count: int) -> Channels:
        """A number or an image, as an image of so many channels."""
        if isinstance(argument, Tensor):
            channels = self.image(argument)
            if channels.count != count:
                raise NotFollowed("one channel spread over many")
            return channels
        if isinstance(argument, (bool, complex)):
            raise NotFollowed("a number that is none")
        return Channels.filled(Poly.constant(argument), count)


def bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operator's arguments by name, defaults included."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _is_written(func: Any, argument: str) -> bool:
    return any(
        a.name == argument and a.alias_info is not None and a.alias_info.is_write
        for a in func._schema.arguments
    )


def _depends_on_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether values of tensors become what a forward can decide by: a number, or a shape."""
    if torch.Tag.data_dependent_output in func.tags or func.overloadpacket is aten._pack_padded_sequence:
        return True
    if func is aten.index.Tensor:  # with integers, the result has their shape
        indices = bound(func, args, kwargs)["indices"]
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
    return torch.Tag.dynamic_output_shape in func.tags


def _functional(func: Any) -> Any:
    """What computes the same as an operator that writes to its first argument; None if there is nothing."""
    name = func._schema.name.partition("::")[2]
    written = [a.name for a in func._schema.arguments if _is_written(func, a.name)]
    if func.namespace != "aten" or not name.endswith("_") or written != [func._schema.arguments[0].name]:
        return None
    packet = getattr(aten, name[:-1], None)
    overload = getattr(packet, func._overloadname, None)
    if overload is None or overload._schema.is_mutable:
        return None
    names = [[a.name for a in f._schema.arguments] for f in (func, overload)]
    return overload if names[0] == names[1] else None


# They read values without an operator.
_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)


class SeeDetach(TorchFunctionMode):
    """Tells a recorder what operators do not: which detaching is the module's own, since autograd detaches as
    well, and where values are read."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.data.__get__:  # type: ignore[attr-defined]
            self._recorder.recording.refusal = "it takes the data of a tensor"
        splits = func in (torch.tensor_split, Tensor.tensor_split)
        if func in _READS or (splits and any(True for _ in tensors_of([args[1:], kwargs], ""))):
            self._recorder.recording.depends_on_values = True
        if autocasting() != self._recorder.autocast:
            self._recorder.recording.refusal = "autocast is switched on or off inside it"
        if func not in (Tensor.detach, Tensor.detach_, torch.detach):
            return func(*args, **(kwargs or {}))
        before, self._recorder.detaching = self._recorder.detaching, True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._recorder.detaching = before
