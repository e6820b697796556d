"""Problems, tolerances and comparisons with which a ConvGRU is judged; for this package's tests and for yours.

    sample_inputs()                 named problems of one layer and direction: odd sizes, kernels, layouts, lengths, ...
    run(backend, sample, dtype)     output and gradients of a backend on a sample
    reference(sample, dtype)        the same from plain PyTorch in float64
    assert_close_to_reference       one tensor, judged by several criteria at once
    assert_gradients_close          all gradients, each judged so; parameters gate by gate
    TOLERANCES                      the one table of bounds, by dtype and quantity

`python -m convgru_fused.testing` measures the errors that the table comes from and prints them beside it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import eager
from .backends import BACKENDS
from .eager import Gradients

__all__ = [
    "TOLERANCES",
    "Errors",
    "Sample",
    "assert_close_to_reference",
    "assert_gradients_close",
    "measure",
    "reference",
    "run",
    "sample_inputs",
]

# Comparisons.


@dataclass(frozen=True)
class Errors:
    """How far a tensor is from another, in four numbers without unit; a bound on them is a tolerance.

    Each sees what the others miss: one wrong element disappears in a norm, a small offset that has the same sign
    everywhere disappears among roundings, a wrong scale leaves the angle alone.
    """

    elementwise: float  # largest |error| over largest |expected|
    relative_l2: float  # |error|_2 over |expected|_2
    cosine: float  # 1 - cosine of the angle between the two
    bias: float  # |mean error|, less what chance explains (4 standard errors), over rms expected

    def __mul__(self, factor: float) -> Errors:
        return Errors(*(factor * value for value in astuple(self)))

    def maximum(self, other: Errors) -> Errors:
        """The larger of the two, number by number; a NaN stays."""
        return Errors(*(a if not a <= b else b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def exceeded(self, bound: Errors) -> list[str]:
        """The names of the criteria that are not within `bound`; a NaN is within none."""
        return [f.name for f in fields(self) if not getattr(self, f.name) <= getattr(bound, f.name)]


_STANDARD_ERRORS = 4  # chance alone exceeds 4 standard errors once in 16,000 tensors


def measure(actual: Tensor, expected: Tensor) -> Errors:
    """The errors of `actual` against `expected`, computed in float64. Zero against zero is no error."""
    if actual.numel() == 0:
        return Errors(0.0, 0.0, 0.0, 0.0)
    a, e = (t.detach().to(device="cpu", dtype=torch.float64).flatten() for t in (actual, expected))
    error = a - e
    norm_error, norm_a, norm_e = (t.norm().item() for t in (error, a, e))
    # Half the squared distance of the unit vectors: 1 - cos without its cancellation.
    cosine = 0.5 * (a / norm_a - e / norm_e).square().sum().item() if norm_a and norm_e else float(norm_a != norm_e)
    chance = _STANDARD_ERRORS * norm_error / a.numel()  # standard error of the mean: rms / sqrt(n), rms = norm / sqrt(n)
    return Errors(
        elementwise=_ratio(error.abs().max().item(), e.abs().max().item()),
        relative_l2=_ratio(norm_error, norm_e),
        cosine=cosine,
        bias=_ratio(_positive(error.mean().abs().item() - chance), norm_e / math.sqrt(a.numel())),
    )


def _ratio(error: float, scale: float) -> float:
    """error / scale; infinite for any error of what should be zero."""
    return 0.0 if error == 0 else error / scale if scale else math.inf


def _positive(x: float) -> float:
    return 0.0 if x < 0 else x  # a NaN stays


# What `python -m convgru_fused.testing` printed (torch 2.13.0, x86-64 with AVX-512): the largest error over all samples,
# of every backend, times 4 for float64 and float32, where other machines sum in another order, and times 2 for bfloat16
# and float16, whose errors come from rounding what is stored, which is the same everywhere; two digits, rounded up.
TOLERANCES: dict[tuple[torch.dtype, str], Errors] = {}
"""Bounds by dtype and quantity, "output" or "gradients"; both are compared with the float64 reference."""


def _location(flat_index: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        flat_index, position = divmod(flat_index, size)
        index.append(position)
    return tuple(reversed(index))


def _complaint(actual: Tensor, expected: Tensor, name: str, bound: Errors) -> str:
    """Why `actual` is not close to `expected`, or ""."""
    if actual.shape != expected.shape:
        return f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    errors = measure(actual, expected)
    exceeded = errors.exceeded(bound)
    if not exceeded:
        return ""
    lines = [f"{name}: not close to the reference"]
    lines += [f"  {key}: {getattr(errors, key):.2e}, allowed {getattr(bound, key):.2e}" for key in exceeded]
    a, e = (t.detach().to(device="cpu", dtype=torch.float64) for t in (actual, expected))
    error = (a - e).abs()
    beyond = (~(error <= bound.elementwise * e.abs().max())).flatten().nonzero().flatten()  # NaN is beyond
    worst = int(error.nan_to_num(nan=math.inf).argmax())
    places = {"worst element": worst}
    if len(beyond):
        lines.append(f"  {len(beyond)} of {error.numel()} elements beyond the elementwise bound")
        places = {"first element": int(beyond[0]), **places}
    for what, flat_index in places.items():
        index = _location(flat_index, error.shape)
        lines.append(f"  {what} {index}: expected {e[index].item():.9g}, got {a[index].item():.9g}")
    return "\n".join(lines)


def assert_close_to_reference(
    actual: Tensor, expected: Tensor, name: str = "output", *, tolerance: Errors | None = None
) -> None:
    """Asserts that `actual` is within `tolerance` of `expected`, by default an output's in the dtype of `actual`.

    Raises:
        AssertionError: naming the tensor, each criterion that failed, and the first and the worst element.
    """
    complaint = _complaint(actual, expected, name, tolerance or TOLERANCES[actual.dtype, "output"])
    if complaint:
        raise AssertionError(complaint)


def assert_gradients_close(
    actual: Gradients | Mapping[str, Tensor | None],
    expected: Gradients | Mapping[str, Tensor | None],
    *,
    tolerance: Errors | None = None,
) -> None:
    """Asserts that two sets of named gradients are close: the same names, None in the same places, and each tensor within
    `tolerance`, by default that of gradients in its dtype.

    Gradients named weight_* and bias_* are judged for each gate apart: those of r are often a hundredth of those of n,
    and an error in them would not be seen in the whole.

    Raises:
        AssertionError: as `assert_close_to_reference`, for every tensor that fails.
    """
    actual, expected = (g._asdict() if isinstance(g, Gradients) else g for g in (actual, expected))
    if actual.keys() != expected.keys():
        raise AssertionError(f"gradients: expected those of {', '.join(expected)}, got those of {', '.join(actual)}")
    complaints = []
    for name, expected_gradient in expected.items():
        gradient = actual[name]
        if gradient is None or expected_gradient is None:
            if gradient is not expected_gradient:
                missing, present = ("None", "a gradient") if gradient is None else ("a gradient", "None")
                complaints.append(f"grad {name}: expected {present}, got {missing}")
            continue
        bound = tolerance or TOLERANCES[gradient.dtype, "gradients"]
        parts = [(f"grad {name}", gradient, expected_gradient)]
        if name.startswith(("weight_", "bias_")) and gradient.shape == expected_gradient.shape:
            gates = zip("rzn", gradient.chunk(3), expected_gradient.chunk(3), strict=True)
            parts = [(f"grad {name}[{gate}]", a, e) for gate, a, e in gates]
        complaints += [_complaint(a, e, part, bound) for part, a, e in parts]
    complaints = [complaint for complaint in complaints if complaint]
    if complaints:
        raise AssertionError("\n".join(complaints))


# Problems.

Arguments = tuple[Any, ...]  # those of eager.conv_gru, in its order


@dataclass(frozen=True)
class Sample:
    """One named problem: one layer, one direction. Its tensors are the same each time they are made."""

    name: str
    T: int
    N: int
    C: int
    K: int
    H: int
    W: int
    kernel: tuple[int, int] = (3, 3)
    input: bool = True
    hx: bool = False
    bias: bool = True
    gate_bias: str = ""  # "", "full" (T,N,3K,H,W) or "1x1" (T,N,3K,1,1)
    lengths: tuple[int, ...] | None = None
    layout: str = "contiguous"  # of every image: "contiguous", "channels_last", "strided" (with gaps), "expanded"
    variant: str = "gru-rcn"
    reverse: bool = False

    def arguments(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", *, requires_grad: bool = False
    ) -> Arguments:
        """The arguments of `eager.conv_gru`, new leaves on each call.

        Sizes are chosen so that the gates leave the linear part of their curve: pre-activations are about 1.
        """
        T, N, C, K, H, W = self.T, self.N, self.C, self.K, self.H, self.W
        kh, kw = self.kernel
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).mul_(scale)

        gate_pixels = (1, 1) if self.gate_bias == "1x1" else (H, W)
        # Everything is drawn, needed or not, so that samples that differ in one option differ in nothing else.
        input = normal(T, N, C, H, W, scale=1.0)
        hx = normal(N, K, H, W, scale=0.5)
        weight_ih = normal(3 * K, C, kh, kw, scale=1 / math.sqrt(C * kh * kw))
        weight_hh = normal(3 * K, K, kh, kw, scale=1 / math.sqrt(K * kh * kw))
        bias_ih, bias_hh = normal(3 * K, scale=0.5), normal(3 * K, scale=0.5)
        gate_bias = normal(T, N, 3 * K, *gate_pixels, scale=0.5)

        def leaf(tensor: Tensor, wanted: bool, *, image: bool = False) -> Tensor | None:
            if not wanted:
                return None
            tensor = tensor.to(device=device, dtype=dtype)
            return (self._lay_out(tensor) if image else tensor).requires_grad_(requires_grad)

        return (
            leaf(input, self.input, image=True),
            leaf(hx, self.hx, image=True),
            leaf(weight_ih, self.input),
            leaf(weight_hh, True),
            leaf(bias_ih, self.bias and self.input),
            leaf(bias_hh, self.bias),
            leaf(gate_bias, bool(self.gate_bias), image=True),
            None if self.lengths is None else torch.tensor(self.lengths, device=device),
            self.variant,
            self.reverse,
        )

    def grad_output(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """A gradient (T,N,K,H,W) for the output, in the sample's layout."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + 1)
        shape = (self.T, self.N, self.K, self.H, self.W)
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        return self._lay_out(gradient.to(device=device, dtype=dtype))

    def _lay_out(self, images: Tensor) -> Tensor:
        """The values of images (...,C,H,W) in the sample's layout; "expanded" repeats the first along the first axis."""
        if self.layout == "channels_last":
            return images.movedim(-3, -1).contiguous().movedim(-1, -3)
        if self.layout == "strided":
            buffer = images.new_full((*images.shape[:-1], 2 * images.size(-1) + 1), math.nan)
            buffer[..., 1::2] = images
            return buffer[..., 1::2]
        if self.layout == "expanded":
            return images[:1].expand_as(images)
        return images


# Each case is there for the reason in its name; the sizes are odd on purpose, and small.
_CASES: tuple[dict[str, Any], ...] = (
    dict(name="plain", T=4, N=2, C=3, K=8, H=5, W=9),
    dict(name="one-step", T=1, N=1, C=8, K=3, H=5, W=9),
    dict(name="one-step-hx", T=1, N=2, C=8, K=3, H=5, W=9, hx=True),
    dict(name="1x1-image", T=5, N=3, C=17, K=8, H=1, W=1, kernel=(1, 1), hx=True),
    dict(name="kernel-beyond-image", T=3, N=2, C=3, K=8, H=1, W=1, hx=True),
    dict(name="1x7-image", T=3, N=2, C=8, K=17, H=1, W=7, kernel=(1, 5), hx=True),
    dict(name="one-channel", T=7, N=2, C=1, K=1, H=5, W=9, hx=True),
    dict(name="kernel-1x1", T=3, N=2, C=17, K=8, H=5, W=9, kernel=(1, 1)),
    dict(name="kernel-5x1", T=4, N=1, C=3, K=8, H=13, W=17, kernel=(5, 1), hx=True),
    dict(name="kernel-3x5", T=3, N=2, C=3, K=17, H=5, W=9, kernel=(3, 5), hx=True, lengths=(3, 2)),
    dict(name="kernel-7x7", T=3, N=1, C=8, K=3, H=13, W=17, kernel=(7, 7)),
    dict(name="no-bias", T=4, N=2, C=8, K=8, H=5, W=9, bias=False),
    dict(name="no-bias-hx", T=4, N=2, C=8, K=8, H=5, W=9, bias=False, hx=True),
    dict(name="lengths", T=6, N=3, C=3, K=8, H=5, W=9, lengths=(6, 0, 1)),
    dict(name="lengths-hx", T=7, N=3, C=3, K=8, H=5, W=9, hx=True, lengths=(3, 7, 0)),
    dict(name="lengths-all-zero", T=3, N=2, C=3, K=8, H=5, W=9, hx=True, lengths=(0, 0)),
    dict(name="gate-bias", T=4, N=2, C=3, K=8, H=5, W=9, hx=True, gate_bias="full"),
    dict(name="gate-bias-1x1", T=4, N=2, C=3, K=8, H=5, W=9, gate_bias="1x1"),
    dict(name="no-input", T=4, N=2, C=3, K=8, H=5, W=9, input=False, gate_bias="full"),
    dict(name="no-input-1x1", T=4, N=2, C=3, K=8, H=5, W=9, input=False, hx=True, gate_bias="1x1"),
    dict(name="channels-last", T=4, N=2, C=8, K=8, H=13, W=17, hx=True, gate_bias="full", layout="channels_last"),
    dict(name="strided", T=4, N=2, C=8, K=3, H=5, W=9, hx=True, gate_bias="full", layout="strided"),
    dict(name="expanded", T=4, N=3, C=3, K=8, H=5, W=9, hx=True, gate_bias="full", layout="expanded"),
    dict(name="everything", T=5, N=3, C=17, K=17, H=13, W=17, hx=True, gate_bias="full", lengths=(2, 5, 4)),
)


def sample_inputs(select: Callable[[Sample], bool] = lambda sample: True) -> Iterator[Sample]:
    """The samples that `select` accepts: every case in both variants and both directions of time."""
    for case, variant, reverse in product(_CASES, eager.VARIANTS, (False, True)):
        name = f"{case['name']}-{variant}{'-reverse' if reverse else ''}"
        sample = Sample(**{**case, "name": name, "variant": variant, "reverse": reverse})
        if select(sample):
            yield sample


def run(
    backend: str,
    sample: Sample,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    save_gates: bool = True,
) -> tuple[Tensor, Gradients]:
    """The output of `sample` on `backend`, and the gradients of all its arguments for `sample.grad_output`.

    Raises:
        ValueError: this installation lacks the backend.
    """
    chosen = BACKENDS[backend]
    if missing := chosen.missing():
        raise ValueError(f"backend {backend!r} is not available: {missing}")
    args = sample.arguments(dtype, device, requires_grad=True)
    output = chosen.conv_gru(*args, save_gates=save_gates)
    return output.detach(), autograd_gradients(output, args, sample.grad_output(dtype, device))


def autograd_gradients(output: Tensor, args: Arguments, grad_output: Tensor) -> Gradients:
    """The gradients of those arguments that ask for one, by autograd; None for the others."""
    leaves = args[: len(Gradients._fields)]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    gradients = iter(torch.autograd.grad(output, wanted, grad_output))
    return Gradients(*(next(gradients) if leaf is not None and leaf.requires_grad else None for leaf in leaves))


@lru_cache(maxsize=None)
def reference(sample: Sample, dtype: torch.dtype) -> tuple[Tensor, Gradients]:
    """What `run` should give: plain PyTorch in float64, on the values that `dtype` holds. Kept: do not modify."""
    args = tuple(
        arg.detach().double().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in sample.arguments(dtype)
    )
    output = eager.conv_gru(*args)
    return output.detach(), autograd_gradients(output, args, sample.grad_output(dtype).double())


# Where the table of tolerances comes from.

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _measure_sample(output: Tensor, gradients: Gradients, sample: Sample, dtype: torch.dtype) -> dict[str, Errors]:
    expected_output, expected_gradients = reference(sample, dtype)
    worst = Errors(0.0, 0.0, 0.0, 0.0)
    for name, actual, expected in zip(Gradients._fields, gradients, expected_gradients, strict=True):
        if actual is None:
            continue
        gates = 3 if name.startswith(("weight_", "bias_")) else 1
        for a, e in zip(actual.chunk(gates), expected.chunk(gates), strict=True):
            worst = worst.maximum(measure(a, e))
    return {"output": measure(output, expected_output), "gradients": worst}


def _by_hand(sample: Sample, dtype: torch.dtype) -> tuple[Tensor, Gradients]:
    """As `run`, with the hand-derived backward of eager.py."""
    args = sample.arguments(dtype)
    return eager.conv_gru(*args), eager.conv_gru_backward(sample.grad_output(dtype), *args)


def main() -> None:
    """Prints the largest errors over all samples, by dtype, quantity and backend, and the table's bounds."""
    runners: dict[str, Callable[[Sample, torch.dtype], tuple[Tensor, Gradients]]] = {"by hand": _by_hand}
    for name, backend in BACKENDS.items():
        if not backend.missing():
            runners[name] = lambda sample, dtype, name=name: run(name, sample, dtype)
    header = " ".join(f"{field.name:>12}" for field in fields(Errors))
    print(f"{'':9} {'':9} {'':8} {header}")
    for dtype in DTYPES:
        errors = {(runner, quantity): Errors(0.0, 0.0, 0.0, 0.0) for quantity in ("output", "gradients") for runner in runners}
        for sample, (runner, function) in product(sample_inputs(), runners.items()):
            for quantity, measured in _measure_sample(*function(sample, dtype), sample, dtype).items():
                errors[runner, quantity] = errors[runner, quantity].maximum(measured)
        rows = {**errors, **{("allowed", q): TOLERANCES[dtype, q] for q in ("output", "gradients") if (dtype, q) in TOLERANCES}}
        for (runner, quantity), measured in sorted(rows.items(), key=lambda row: row[0][1], reverse=True):
            values = " ".join(f"{value:12.1e}" for value in astuple(measured))
            print(f"{str(dtype).removeprefix('torch.'):9} {quantity:9} {runner:8} {values}")


if __name__ == "__main__":
    main()
