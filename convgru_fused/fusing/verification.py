"""Whether a formula computes what a module computes: outputs, what it remembers, and every gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .formula import Formula
from .forward import FusedForward
from .recording import arguments_of, found_in, tensors_of
from .trial import Example, Refused, TensorLike, apart, attribute_tensors, copied, learn, mapped

DRAWS = 2  # of random values
LARGEST_IMAGE, LARGEST_BATCH = 32, 4  # what is tried first: a formula that is wrong is wrong at any size

RTOL = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far a replacement may be from the original, over the largest value of the tensor.

In float64 rounding alone was seen to reach 1e-15 over all styles of the tests (test_fuse_report.py holds it
to a thousandth of the bound), and mistakes in a formula show in the second digit. The other types are for
modules whose code does not work in float64: 2 to 300 times what `testing.TOLERANCES` measured.
"""


def verify(
    module: nn.Module,
    example: Example,
    formula: Formula,
    atol: float | None = None,
    rtol: float | None = None,
) -> float:
    """Compares a formula with the module on random values, in float64 if the module's code works in it.

    Returns:
        The largest difference of an output, over the largest of its values.

    Raises:
        Refused: a tensor of the result or a gradient differs by more than atol + rtol |expected|; by default
            atol is rtol times the largest |expected|, and rtol is RTOL's.
    """
    with torch.inference_mode(False), torch.enable_grad():
        trials = (_in_float64(module, like, formula) for like in (_small(example), example))
        double, form, like = next(filter(None, trials), (module, formula, example))
        worst = 0.0
        for seed in range(DRAWS):
            worst = max(worst, _compare(double, like, form, seed, atol, rtol))
        return worst


def _small(example: Example) -> Example:
    """The same with smaller images, fewer of them and shorter sequences, in proportion."""
    likes = [like for like in _likes(example) if like.has_images]
    factor = math.ceil(max((size for like in likes for size in like.shape[-2:]), default=1) / LARGEST_IMAGE)

    def smaller(like: TensorLike) -> TensorLike:
        if not like.has_images:
            return like
        *batch, channels, height, width = like.shape
        image = (max(1, round(size / factor)) for size in (height, width))
        return replace(like, shape=(*(min(size, LARGEST_BATCH) for size in batch), channels, *image))

    return example.changed(smaller)


def _in_float64(
    module: nn.Module, example: Example, formula: Formula
) -> tuple[nn.Module, Formula, Example] | None:
    """All in float64, if the module then computes the same formula."""
    with torch.autocast(_device_type(example), enabled=False):
        double = copied(module).double()
        for _, tensor in attribute_tensors(double):
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        like = example.changed(lambda t: t if t.values is not None else replace(t, dtype=torch.float64))
        try:
            form = learn(double, like)
        except Exception:
            return None
    return (double, form, like) if form.skeleton() == formula.skeleton() else None


def _device_type(example: Example) -> str:
    for like in _likes(example):
        return like.device.type
    return "cpu"


def _likes(example: Example) -> Iterator[TensorLike]:
    return (like for _, like in found_in([example.args, example.kwargs], TensorLike, ""))


def _compare(
    module: nn.Module, example: Example, formula: Formula, seed: int, atol: float | None, rtol: float | None
) -> float:
    expected = _outcome(module, example, seed, None)
    actual = _outcome(module, example, seed, formula)
    if expected.keys() != actual.keys():
        missing = sorted(expected.keys() ^ actual.keys())
        raise Refused(f"verification: only one of the two has {missing[0]}")
    worst = 0.0
    for name, e in expected.items():
        a = actual[name]
        if a.shape != e.shape or a.dtype != e.dtype:
            raise Refused(
                f"verification: {name} is {a.dtype} {tuple(a.shape)} instead of {e.dtype} {tuple(e.shape)}"
            )
        if not e.numel():
            continue
        error, largest = (a - e).abs(), e.abs().max().item()
        kind = "gradients" if name.startswith("gradient") else "output"
        relative = RTOL[e.dtype] if rtol is None else rtol
        absolute = relative * largest if atol is None else atol
        if not bool((error <= absolute + relative * e.abs()).all()):
            raise Refused(f"verification: {name} differs by {error.max().item():.1e} of {largest:.1e}")
        if kind == "output" and largest:
            worst = max(worst, error.max().item() / largest)
    return worst


def _outcome(module: nn.Module, example: Example, seed: int, formula: Formula | None) -> dict[str, Tensor]:
    """Results, attributes and gradients by name, of the module's code or of a formula."""
    module = copied(module)
    args, kwargs = example.make(seed)
    inputs = {n: t for n, t in arguments_of(args, kwargs) if t.is_floating_point()}
    for tensor in inputs.values():
        tensor.requires_grad_()
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with apart():  # both begin with the same random state
        # A module may change its arguments in place, which a leaf does not allow.
        args, kwargs = (mapped(tree, Tensor, Tensor.clone) for tree in (args, kwargs))
        forward = module.forward if formula is None else _forward_of(module, formula, args, kwargs)
        result = forward(*args, **kwargs)
    results = {name: t for name, t in tensors_of(result, "result") if t.is_floating_point()}
    results |= {name: t for name, t in attribute_tensors(module) if t.is_floating_point()}
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in results.values():
        if tensor.requires_grad:
            weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            total = total + (tensor.cpu().double() * weight).sum()
    gradients: dict[str, Tensor] = {}
    variables = {**inputs, **parameters}
    if total.requires_grad and variables:
        found = torch.autograd.grad(total, list(variables.values()), allow_unused=True)
        gradients = {
            f"gradient of {name}": torch.zeros_like(variables[name]) if g is None else g
            for name, g in zip(variables, found, strict=True)
        }
    buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
    return {name: t.detach() for name, t in {**results, **buffers, **gradients}.items()}


def _forward_of(
    module: nn.Module, formula: Formula, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> FusedForward:
    """A formula with a module's parameters and attributes."""
    forward = FusedForward(module, None)
    forward.add(args, kwargs, formula)
    return forward
