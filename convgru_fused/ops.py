"""The operators and the four rules that follow each of them: fake, autograd, autocast, vmap.

    convgru_fused::conv_gru            a layer over a whole sequence -> its states, and the gates kept for the
                                       backward pass
    convgru_fused::conv_gru_backward   its gradient
    convgru_fused::triton_conv_gru, convgru_fused::triton_conv_gru_backward   the same by Triton

The schemas of the first two are in csrc/schemas.h, the implementations in csrc/<dispatch key>/. Where the
library is not built this module imports all the same and `missing_reason` says why. The others are
implemented in convgru_fused/triton, which is imported when one of them is called.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import eager, numerics

NUM_DIFFERENTIABLE = 7  # the leading arguments: input, hx, weight_ih, weight_hh, bias_ih, bias_hh, gate_bias
# Planes of K channels: r, z, n, and for "cudnn" q = U_n*h + b_hn.
GATES_KEPT = {"gru-rcn": 3, "gru-rcn-relu": 3, "cudnn": 4}


def _load() -> str:
    """Loads the compiled operators; returns why that was not possible, or ""."""
    libraries = sorted(Path(__file__).parent.glob("_C*.so"))
    if not libraries:
        return "the compiled extension is missing; build it with `pip install --no-build-isolation -e .`"
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        return f"the compiled extension does not load ({error}); build it again for this torch"
    return ""


missing_reason = _load()


def _missing_on_gpu() -> str:
    """Why the compiled operators do not run on CUDA tensors, or ""."""
    if missing_reason:
        return missing_reason
    if torch._C._dispatch_has_kernel_for_dispatch_key("convgru_fused::conv_gru", "CUDA"):
        return ""
    return "the compiled extension has no kernels for CUDA; CONVGRU_FUSED_CUDA=1 builds them"


missing_on_gpu = _missing_on_gpu()  # found out now: torch.compile cannot look into the dispatcher


# Fake: shapes and strides without data.


def _is_channels_last(images: Tensor) -> bool:
    """Whether (...,C,H,W) lies in memory as (...,H,W,C); the same test as in csrc/tensors.h."""
    return images.stride(-3) == 1


def _empty_like_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised (...,O,H,W) in the memory format of `images`."""
    if not _is_channels_last(images):
        return images.new_empty(shape)
    *batch, channels, height, width = shape
    return images.new_empty((*batch, height, width, channels)).movedim(-1, -3)


def _problem_images(
    input: Tensor | None, hx: Tensor | None, gate_bias: Tensor | None
) -> tuple[Tensor, Any, Any]:
    """The images whose memory format the output takes, and the sizes (T, N) and (H, W)."""
    sequence = gate_bias if input is None else input
    assert sequence is not None
    images = sequence if input is not None or hx is None else hx
    return images, sequence.shape[:2], images.shape[-2:]


def _conv_gru_fake(
    input: Tensor | None,
    hx: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    gate_bias: Tensor | None,
    lengths: Tensor | None,
    variant: str,
    reverse: bool,
    fast: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor]:
    images, (T, N), (H, W) = _problem_images(input, hx, gate_bias)
    K = weight_hh.size(1)
    gates_shape = (T, N, H, W, GATES_KEPT[variant] * K) if save_gates else (0,)
    return _empty_like_images(images, (T, N, K, H, W)), weight_hh.new_empty(gates_shape)


def _conv_gru_backward_fake(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    inputs, output_mask = args[:NUM_DIFFERENTIABLE], args[-1]
    gradients = []
    for needed, tensor in zip(output_mask, inputs, strict=True):
        if not needed:
            gradients.append(grad_output.new_empty(0))
        elif tensor.dim() >= 4 and tensor is not args[2] and tensor is not args[3]:
            gradients.append(_empty_like_images(tensor, tensor.shape))
        else:
            gradients.append(tensor.new_empty(tensor.shape))
    return tuple(gradients)


# Autograd: the gradient of conv_gru is conv_gru_backward; that of conv_gru_backward is autograd's own, on the
# eager code.


def _conv_gru_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, variant, reverse, fast, _save_gates = inputs
    states, gates = output
    # The inputs are the caller's own tensors, kept for the weight gradient and for double backward; ours are
    # the gates. The gradient depends on the states between steps: on none of a single step, whose output may
    # then be changed in place.
    ctx.save_for_backward(*tensors, states if states.size(0) != 1 else None, gates)
    ctx.options = (variant, reverse, fast)
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)


def _conv_gru_autograd(
    operators: Operators, ctx: Any, grad_output: Tensor | None, _grad_gates: None
) -> tuple[Tensor | None, ...]:
    *saved, states, gates = ctx.saved_tensors  # once: a checkpoint recomputes them for the first to ask
    # For every tensor, and for variant, reverse, fast, save_gates.
    nothing = (None,) * (len(saved) + 4)
    if grad_output is None:
        return nothing
    mask = list(ctx.needs_input_grad[:NUM_DIFFERENTIABLE])
    states = grad_output if states is None else states  # any of its shape
    gradients = operators.call_backward(grad_output, *saved, states, gates, *ctx.options, mask)
    needed = tuple(gradient if keep else None for gradient, keep in zip(gradients, mask, strict=True))
    return needed + nothing[NUM_DIFFERENTIABLE:]


def _conv_gru_backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, *arguments, _states, _gates, variant, reverse, _fast, mask = inputs
    ctx.save_for_backward(grad_output, *arguments)
    ctx.variant, ctx.reverse, ctx.mask = variant, reverse, mask
    ctx.set_materialize_grads(False)


def _with_values(tensors: Sequence[Any], where: Sequence[int], values: Sequence[Any]) -> list[Any]:
    result = list(tensors)
    for i, value in zip(where, values, strict=True):
        result[i] = value
    return result


def _eager_gradients(
    grad_output: Tensor, arguments: Sequence[Any], variant: str, reverse: bool, wanted: Sequence[int]
) -> tuple[Tensor, ...]:
    """What conv_gru_backward computes, by the eager code, which can be differentiated again: the gradients of
    the wanted ones of the arguments, seven that have one and lengths."""

    def states(*values: Tensor) -> Tensor:
        return eager.conv_gru(*_with_values(arguments, wanted, values), variant, reverse)  # type: ignore[call-arg]

    with without_autocast(grad_output.device.type):  # in the dtypes that the forward had
        gradient: Any = torch.func.vjp(states, *(arguments[i] for i in wanted))[1]
        return gradient(grad_output)


def _conv_gru_backward_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Double backward. States and gates are functions of the other inputs: these get the whole derivative."""
    grad_output, *arguments = ctx.saved_tensors
    wanted = [i for i, needed in enumerate(ctx.mask) if needed]
    variables = [i for i, needed in enumerate(ctx.needs_input_grad[1 : NUM_DIFFERENTIABLE + 1]) if needed]

    def first(grad_output: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = _with_values(arguments, variables, values)
        return _eager_gradients(grad_output, given, ctx.variant, ctx.reverse, wanted)

    with without_autocast(grad_output.device.type):
        gradient: Any = torch.func.vjp(first, grad_output, *(arguments[i] for i in variables))[1]
        received = tuple(torch.zeros_like(arguments[i]) if grads[i] is None else grads[i] for i in wanted)
        grad_grad_output, *second = gradient(received)
    gradients = _with_values([None] * NUM_DIFFERENTIABLE, variables, second)
    return (
        grad_grad_output,
        *gradients,
        *(None,) * 7,
    )  # lengths, states, gates, variant, reverse, fast, mask


def under_transform() -> bool:
    """Whether a transform of torch.func is under way; torch.compile has its own way with them."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


# Autocast: compute in autocast's dtype. conv_gru_backward needs no rule: it runs in the dtypes that the
# forward had.


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for device_type; False for devices, such as meta, that have none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast computes in on device_type; None where it is off."""
    return torch.get_autocast_dtype(device_type) if autocast_enabled(device_type) else None


def autocast(args: Sequence[Any], device_type: str) -> tuple[Any, ...]:
    """args with every floating-point tensor that is not float64 in autocast's dtype for device_type."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        arg.to(dtype)
        if isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
        else arg
        for arg in args
    )


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _conv_gru_autocast(operators: Operators, device_type: str, *args: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(device_type, enabled=False):
        return operators.forward(*autocast(args, device_type))


# vmap: a mapped axis becomes part of N, unless parameters are mapped or their gradients are asked for; then,
# a loop.

# Where N is in each leading tensor argument of conv_gru; None for parameters, which have no N.
_BATCH_AXIS = (1, 0, None, None, None, None, 1, 0)


def _fold(arg: Tensor | None, in_dim: int | None, axis: int, size: int) -> Tensor | None:
    """The mapped axis in_dim of arg merged into its batch axis; arg is repeated where it is not mapped."""
    if arg is None:
        return None
    if in_dim is None:
        mapped = arg.unsqueeze(axis).expand(*arg.shape[:axis], size, *arg.shape[axis:])
    else:
        mapped = arg.movedim(in_dim, axis)
    return mapped.flatten(axis, axis + 1)


def _loop(op: Any, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    results = [
        op(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])


def _dims(in_dims: Any) -> tuple[int | None, ...]:
    """in_dims of the arguments; that of a list argument comes as a list, and is none of ours."""
    return tuple(dim if isinstance(dim, int) else None for dim in in_dims)


def _conv_gru_vmap(operators: Operators, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    in_dims = _dims(in_dims)
    if any(dim is not None for dim, axis in zip(in_dims, _BATCH_AXIS, strict=False) if axis is None):
        return _loop(operators.call_forward, info, in_dims, args)
    tensors, options = args[: len(_BATCH_AXIS)], args[len(_BATCH_AXIS) :]
    save_gates = options[-1]
    folded = [
        arg if axis is None else _fold(arg, dim, axis, info.batch_size)
        for arg, dim, axis in zip(tensors, in_dims[: len(_BATCH_AXIS)], _BATCH_AXIS, strict=True)
    ]
    output, gates = operators.call_forward(*folded, *options)
    output = output.unflatten(1, (info.batch_size, -1))
    if not save_gates:
        return (output, gates), (1, None)
    return (output, gates.unflatten(1, (info.batch_size, -1))), (1, 1)


def _conv_gru_backward_vmap(operators: Operators, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    # Every use that matters (per-sample gradients) asks for parameter gradients, which a fold would sum over
    # the map.
    return _loop(operators.call_backward, info, _dims(in_dims), args)


def _below_autograd(operator: Any, *args: Any) -> Any:
    """An operator whose rule of autograd has nothing to do: being in Python, it would take its time."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def _direct_function(operators: Operators) -> Any:
    """What register_autograd makes of the same rule, 50 us faster: that fills in defaults first."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
            output = _below_autograd(operators.forward, *args)
            _conv_gru_setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            return _conv_gru_autograd(operators, ctx, *grads)

    return Direct


def _functions_for_transforms(operators: Operators) -> tuple[Any, Any]:
    """For torch.func: its transforms do not see rules that are registered with the dispatcher, so they get
    the same ones as autograd functions."""

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, Tensor]:
            return operators.forward(*args)

        setup_context = staticmethod(_conv_gru_setup_context)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            return _conv_gru_autograd(operators, ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
            return _conv_gru_vmap(operators, info, in_dims, *args)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            return operators.backward(*args)

        setup_context = staticmethod(_conv_gru_backward_setup_context)
        backward = staticmethod(_conv_gru_backward_autograd)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
            return _conv_gru_backward_vmap(operators, info, in_dims, *args)

    return Forward, Backward


def _backward_with_tangents(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """conv_gru_backward where forward-mode differentiation is under way: the operator has no rule for it."""
    *arguments, _states, _gates, variant, reverse, _fast, mask = args
    wanted = [i for i, needed in enumerate(mask) if needed]
    found = _eager_gradients(grad_output, arguments, variant, reverse, wanted)
    return tuple(_with_values([grad_output.new_empty(0)] * NUM_DIFFERENTIABLE, wanted, found))


class Operators:
    """conv_gru and conv_gru_backward of one implementation."""

    forward: Any
    backward: Any

    def __init__(self, name: str) -> None:
        """name: of conv_gru, with the dispatcher."""
        self.names = name, f"{name}_backward"
        self._direct = _direct_function(self)
        self._functions = _functions_for_transforms(self)

    def conv_gru(self, *args: Any, save_gates: bool) -> Tensor:
        """`eager.conv_gru`, whose arguments these are, as one operator. save_gates keeps r, z, n for the
        backward pass, which otherwise computes them again from the states."""
        fast = numerics.allows_fast(args[3].device.type)  # weight_hh's
        if torch.jit.is_tracing():
            save_gates = False  # the trace is the same with gradients or without
        output, _ = self.call_forward(*args, fast, save_gates)
        return output

    def call_forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        device_type = args[3].device.type  # weight_hh's
        if under_transform():
            if not autocast_enabled(device_type):
                return self._functions[0].apply(*args)
            with torch.autocast(device_type, enabled=False):
                return self._functions[0].apply(*autocast(args, device_type))
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return self.forward(*args)
        if not torch.is_grad_enabled() or torch.jit.is_tracing():
            return _below_autograd(self.forward, *args)
        if autocast_enabled(device_type):  # its casts have gradients too
            return self.forward(*args)
        return self._direct.apply(*args)

    def call_backward(self, *args: Any) -> tuple[Tensor, ...]:
        if forward_ad._current_level >= 0:
            return _backward_with_tangents(*args)
        if under_transform():
            return self._functions[1].apply(*args)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self.backward(*args)
        return _below_autograd(self.backward, *args)

    def register(self, library: torch.library.Library) -> None:
        """The rules of both operators, which are defined."""
        forward, backward = (f"convgru_fused::{name}" for name in self.names)
        self.forward, self.backward = (getattr(torch.ops.convgru_fused, name).default for name in self.names)
        torch.library.register_fake(forward, _conv_gru_fake, lib=library)
        torch.library.register_fake(backward, _conv_gru_backward_fake, lib=library)
        torch.library.register_autograd(
            forward, partial(_conv_gru_autograd, self), setup_context=_conv_gru_setup_context, lib=library
        )
        torch.library.register_autograd(
            backward,
            _conv_gru_backward_autograd,
            setup_context=_conv_gru_backward_setup_context,
            lib=library,
        )
        torch.library.register_vmap(forward, partial(_conv_gru_vmap, self), lib=library)
        torch.library.register_vmap(backward, partial(_conv_gru_backward_vmap, self), lib=library)
        for device_type in ("cpu", "cuda"):
            rule = partial(_conv_gru_autocast, self, device_type)
            library.impl(forward, rule, f"Autocast{device_type.upper()}")


NATIVE, TRITON = Operators("conv_gru"), Operators("triton_conv_gru")

# csrc/schemas.h, without the names.
_ARGUMENTS = (
    "Tensor? input, Tensor? hx, Tensor? weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
    "Tensor? gate_bias, Tensor? lengths"
)
FORWARD_SCHEMA = f"({_ARGUMENTS}, str variant, bool reverse, bool fast, bool save_gates) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    f"(Tensor grad_output, {_ARGUMENTS}, Tensor output, Tensor gates, str variant, bool reverse, bool fast, "
    f"bool[] output_mask) -> ({', '.join(['Tensor'] * NUM_DIFFERENTIABLE)})"
)


def triton_interprets() -> bool:
    """Whether Triton's kernels are run by its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str:
    """Why the operators by Triton cannot run in this installation, or ""."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not triton_interprets() and not torch.cuda.is_available():
        return "triton needs a GPU"
    return ""


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _triton_conv_gru(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton import forward
    from .triton.problem import Problem

    *problem, save_gates = args
    with _on_device_of(args[3]):
        return forward.conv_gru(Problem(*problem), save_gates)


def _triton_conv_gru_backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    from .triton import backward
    from .triton.problem import Problem

    *tensors, output, gates, variant, reverse, fast, mask = args
    options: Any = (variant, reverse, fast)
    problem = Problem(*tensors, *options)
    with _on_device_of(grad_output):
        gradients = backward.conv_gru_backward(problem, grad_output, output, gates, mask)
    return tuple(grad_output.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _register() -> torch.library.Library:
    library = torch.library.Library("convgru_fused", "FRAGMENT")
    if not missing_reason:
        NATIVE.register(library)
    implementations = (_triton_conv_gru, _triton_conv_gru_backward)
    schemas = (FORWARD_SCHEMA, BACKWARD_SCHEMA)
    for name, schema, implementation in zip(TRITON.names, schemas, implementations, strict=True):
        library.define(name + schema)
        for device_type in ("CUDA", *(("CPU",) if triton_interprets() else ())):
            library.impl(name, implementation, device_type)
    TRITON.register(library)
    return library


_library = _register()  # kept alive: its registrations end with it
