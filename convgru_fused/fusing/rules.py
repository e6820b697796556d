"""What operators do to channels: one rule for each that is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .channels import Activation, Channels, Convolution, Frame, Geometry, Leaf, Poly, Vector
from .values import Clip, Image, NotFollowed, Padded, Parameter, Stack, Value, is_vector

if TYPE_CHECKING:
    from .recording import Recorder

aten = torch.ops.aten

Arguments = dict[str, Any]
Rule = Callable[["Recorder", Arguments, Any], "Value | list[Value]"]

_RULES: dict[Any, Rule] = {}


def follow(recorder: Recorder, func: Any, arguments: Arguments, result: Any) -> Value | list[Value]:
    """What an operator's results are. Raises NotFollowed."""
    rule = _RULES.get(func.overloadpacket)
    if rule is None:
        raise NotFollowed(func.overloadpacket.__name__)
    return rule(recorder, arguments, result)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators, by name; those that work in place as well."""

    def register(rule: Rule) -> Rule:
        for name in names:
            for packet in (getattr(aten, name, None), getattr(aten, name + "_", None)):
                if packet is not None:
                    _RULES[packet] = rule
        return rule

    return register


# Elementwise.


def _elementwise(recorder: Recorder, function: Callable[..., Poly], *operands: Any) -> Image:
    count = max((t.shape[-3] for t in operands if isinstance(t, Tensor) and t.dim() in (3, 4)), default=0)
    if count == 0:
        raise NotFollowed("an operator on what is no image")
    return Image(Channels.combine(function, *(recorder.operand(operand, count) for operand in operands)))


@_rule("add")
def _add(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x, y: x + y.scaled(a["alpha"]), a["self"], a["other"])


@_rule("sub")
def _sub(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x, y: x - y.scaled(a["alpha"]), a["self"], a["other"])


@_rule("rsub")
def _rsub(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x, y: y - x.scaled(a["alpha"]), a["self"], a["other"])


@_rule("mul")
def _mul(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x, y: x * y, a["self"], a["other"])


@_rule("div")
def _div(recorder: Recorder, a: Arguments, result: Any) -> Value:
    if not isinstance(a["other"], (int, float)) or a.get("rounding_mode") is not None:
        raise NotFollowed("div")
    return _elementwise(recorder, lambda x: x.scaled(1 / a["other"]), a["self"])


@_rule("neg")
def _neg(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x: x.scaled(-1), a["self"])


@_rule("lerp")
def _lerp(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(recorder, lambda x, y, w: x + w * (y - x), a["self"], a["end"], a["weight"])


@_rule("addcmul")
def _addcmul(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _elementwise(
        recorder, lambda x, y, z: x + (y * z).scaled(a["value"]), a["self"], a["tensor1"], a["tensor2"]
    )


def _activation(name: str) -> Rule:
    def rule(recorder: Recorder, a: Arguments, result: Any) -> Value:
        others = [value for key, value in a.items() if key not in ("self", "inplace")]
        function = f"{name}({', '.join(map(str, others))})" if others else name
        return _elementwise(recorder, lambda x: Poly.of(Activation(function, x)), a["self"])

    return rule


for _name in (
    *("sigmoid", "tanh", "relu", "leaky_relu", "silu", "gelu", "elu", "softplus", "hardtanh", "hardsigmoid"),
    *("hardswish", "mish"),
):
    _rule(_name)(_activation(_name))


# Constants.


def _constant(result: Tensor, number: Any) -> Value:
    if result.dim() != 4 or not result.is_floating_point() or not isinstance(number, (int, float)):
        raise NotFollowed("a constant that is no image")
    return Image(Channels.filled(Poly.constant(number), result.shape[1]))


@_rule("zeros", "zeros_like", "new_zeros", "zero")
def _zeros(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _constant(result, 0)


@_rule("ones", "ones_like", "new_ones")
def _ones(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _constant(result, 1)


@_rule("full", "full_like", "new_full")
def _full(recorder: Recorder, a: Arguments, result: Any) -> Value:
    return _constant(result, a["fill_value"])


# The same elements, elsewhere.


@_rule("clone", "alias", "_to_copy", "lift_fresh", "contiguous")
def _same(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    if result.dtype != source.dtype and source.device.type not in recorder.autocast:
        raise NotFollowed(f"a conversion from {_short(source.dtype)} to {_short(result.dtype)}")
    return recorder.get(source)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@_rule("copy")
def _copy(recorder: Recorder, a: Arguments, result: Any) -> Value:
    if a["src"].shape != result.shape:
        raise NotFollowed("a copy of another shape")
    return recorder.get(a["src"])


@_rule("view", "_unsafe_view", "expand", "reshape")
def _view(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    value = recorder.get(source)
    if isinstance(value, Parameter):
        return _seen_as(value, source, result)
    if result.shape == source.shape:
        return value
    if (
        isinstance(value, Image)
        and result.dim() == 4
        and result.shape[:2] == source.shape[:2]
        and source.dim() == 4
        and source.shape[2:] == (1, 1)
    ):
        return value  # spread over an image
    raise NotFollowed("a view of another shape")


def _seen_as(value: Parameter, source: Tensor, result: Tensor) -> Value:
    """A parameter in another shape."""
    if result.shape == source.shape:
        return value
    if not value.vector or not is_vector(result):
        raise NotFollowed("a parameter in another shape")
    # Where its elements begin does not depend on how many axes of size 1 are around them.
    return replace(value, start=(sum(value.start), 0))


@_rule("unsqueeze")
def _unsqueeze(recorder: Recorder, a: Arguments, result: Any) -> Value:
    value = recorder.get(a["self"])
    if isinstance(value, Parameter):
        return _seen_as(value, a["self"], result)
    axis = a["dim"] % result.dim()
    if isinstance(value, Image) and axis in (0, 1) and result.dim() == 5:
        return Stack(axis, (value.channels,))
    raise NotFollowed("a new axis")


@_rule("squeeze")
def _squeeze(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    value = recorder.get(source)
    if result.shape == source.shape:
        return value
    axis = a.get("dim")
    if isinstance(axis, int) and source.dim() == 5:
        return _select_frame(value, axis % 5, 0)
    raise NotFollowed("an axis taken away")


@_rule("transpose")
def _transpose(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    axes = {a["dim0"] % max(source.dim(), 1), a["dim1"] % max(source.dim(), 1)}
    return _exchanged(recorder, source, axes)


@_rule("permute")
def _permute(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    dims = [dim % source.dim() for dim in a["dims"]]
    if dims[2:] != list(range(2, source.dim())) or source.dim() < 2:
        raise NotFollowed("a permutation of axes")
    return _exchanged(recorder, source, {0, 1} if dims[0] else {0})


def _exchanged(recorder: Recorder, source: Tensor, axes: set[int]) -> Value:
    value = recorder.get(source)
    if len(axes) == 1:
        return value
    if axes == {0, 1} and isinstance(value, Clip):
        return Clip(value.tensor, (value.axes[1], value.axes[0]))
    if axes == {0, 1} and isinstance(value, Stack):
        return Stack(1 - value.axis, value.frames)
    raise NotFollowed("axes exchanged")


# Parts and wholes.


@_rule("cat")
def _cat(recorder: Recorder, a: Arguments, result: Any) -> Value:
    axis = a["dim"] % max(result.dim(), 1)
    # torch lets an empty tensor (0,) take part in any concatenation.
    tensors = [t for t in a["tensors"] if t.numel() or t.dim() == result.dim()]
    if result.dim() == 4 and axis == 1:
        return Image(Channels.cat(recorder.image(t) for t in tensors))
    if result.dim() == 5:
        stacks = [_as_stack(recorder, t, None if axis == 2 else axis) for t in tensors]
        if axis < 2:
            return Stack(axis, tuple(frame for stack in stacks for frame in stack.frames))
        if axis == 2 and len({stack.axis for stack in stacks}) == 1:
            frames = zip(*(stack.frames for stack in stacks), strict=True)
            return Stack(stacks[0].axis, tuple(Channels.cat(images) for images in frames))
    raise NotFollowed("a concatenation along another axis than the channels'")


def _as_stack(recorder: Recorder, tensor: Tensor, axis: int | None) -> Stack:
    """A tensor of five axes as images along an axis; along its own if that is known."""
    value = recorder.get(tensor)
    if isinstance(value, Stack) and axis in (None, value.axis):
        return value
    if isinstance(value, Clip) and axis is not None:
        return Stack(axis, tuple(_frame(value, axis, t, tensor.shape[2]) for t in range(tensor.shape[axis])))
    raise NotFollowed("frames along an axis that is not known")


def _frame(clip: Clip, axis: int, index: int, channels: int) -> Channels:
    return Channels.of(Leaf(Frame(clip.tensor, clip.axes[axis], index)), channels)


@_rule("stack")
def _stack(recorder: Recorder, a: Arguments, result: Any) -> Value:
    axis = a["dim"] % result.dim()
    if result.dim() != 5 or axis not in (0, 1):
        raise NotFollowed("a stack of what are no images")
    return Stack(axis, tuple(recorder.image(t) for t in a["tensors"]))


def _select_frame(value: Value, axis: int, index: int, channels: int | None = None) -> Value:
    if isinstance(value, Stack) and axis == value.axis:
        return Image(value.frames[index])
    if isinstance(value, Clip) and axis in (0, 1) and channels is not None:
        return Image(_frame(value, axis, index, channels))
    raise NotFollowed("an element along another axis than time's")


@_rule("select")
def _select(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    if source.dim() != 5:
        raise NotFollowed("an element along an axis")
    axis = a["dim"] % 5
    return _select_frame(recorder.get(source), axis, a["index"] % source.shape[axis], source.shape[2])


@_rule("unbind")
def _unbind(recorder: Recorder, a: Arguments, result: Any) -> list[Value]:
    source = a["self"]
    axis = a["dim"] % max(source.dim(), 1)
    if source.dim() != 5:
        raise NotFollowed("elements along an axis")
    value = recorder.get(source)
    return [_select_frame(value, axis, t, source.shape[2]) for t in range(source.shape[axis])]


def _narrowed(recorder: Recorder, source: Tensor, axis: int, start: int, count: int) -> Value:
    value = recorder.get(source)
    if isinstance(value, Parameter) and axis < 2:
        begin = (
            (value.start[0] + start, value.start[1])
            if axis == 0
            else (value.start[0], value.start[1] + start)
        )
        return replace(value, start=begin)
    if source.dim() == 4 and axis == 1:
        return Image(recorder.image(source).narrow(start, count))
    if source.dim() == 5 and axis in (0, 1):
        return Stack(axis, _as_stack(recorder, source, axis).frames[start : start + count])
    if source.dim() == 5 and axis == 2:
        stack = _as_stack(recorder, source, None)
        return Stack(stack.axis, tuple(frame.narrow(start, count) for frame in stack.frames))
    raise NotFollowed("a part along another axis than the channels'")


@_rule("split", "split_with_sizes")
def _split(recorder: Recorder, a: Arguments, result: Any) -> list[Value]:
    source = a["self"]
    axis = a["dim"] % max(source.dim(), 1)
    values: list[Value] = []
    start = 0
    for part in result:
        values.append(_narrowed(recorder, source, axis, start, part.shape[axis]))
        start += part.shape[axis]
    return values


@_rule("slice")
def _slice(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    if result.shape == source.shape and a["step"] == 1:
        return recorder.get(source)
    if a["step"] != 1:
        raise NotFollowed("every second element")
    axis = a["dim"] % source.dim()
    size = source.shape[axis]
    start = a["start"] or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    return _narrowed(recorder, source, axis, start, result.shape[axis])


@_rule("flip")
def _flip(recorder: Recorder, a: Arguments, result: Any) -> Value:
    source = a["self"]
    axes = [dim % max(source.dim(), 1) for dim in a["dims"]]
    if source.dim() != 5 or len(axes) != 1 or axes[0] > 1:
        raise NotFollowed("a flip along another axis than time's")
    return Stack(axes[0], _as_stack(recorder, source, axes[0]).frames[::-1])


# Convolutions.


@_rule("convolution")
def _convolution(recorder: Recorder, a: Arguments, result: Any) -> Value:
    image, weight, bias = a["input"], a["weight"], a["bias"]
    if a["transposed"]:
        raise NotFollowed("a transposed convolution")
    if image.dim() != 4:
        raise NotFollowed(f"a convolution over {image.dim() - 2} axes")
    value, w = recorder.get(image), recorder.get(weight)
    padding = tuple(a["padding"])
    if isinstance(value, Padded):
        padding = (padding[0] + value.padding[0], padding[1] + value.padding[1])
        value = value.image
    channels = value.channels if isinstance(value, Image) else recorder.image(image)
    if not isinstance(w, Parameter):
        raise NotFollowed("a convolution whose weight is computed")
    geometry = Geometry(
        tuple(weight.shape[2:]), tuple(a["stride"]), padding, tuple(a["dilation"]), a["groups"]
    )
    atom = Convolution(w.name, w.whole, geometry, channels, w.start[1], w.start[0])
    sums = Channels.of(atom, weight.shape[0])
    if bias is not None:
        b = recorder.get(bias)
        if not isinstance(b, Parameter) or not b.vector:
            raise NotFollowed("a convolution whose bias is computed")
        added = Channels.of(Vector(b.name, sum(b.start)), weight.shape[0])
        sums = Channels.combine(lambda x, y: x + y, sums, added)
    return Image(sums)


@_rule("constant_pad_nd")
def _pad(recorder: Recorder, a: Arguments, result: Any) -> Value:
    left, right, top, bottom = (int(n) for n in (*a["pad"], 0, 0)[:4])
    if a["value"] != 0 or left != right or top != bottom or any(a["pad"][4:]) or min(left, top) < 0:
        raise NotFollowed("a padding that is not of zeros, alike on both sides")
    return Padded(Image(recorder.image(a["self"])), (top, left))
