"""Problems, tolerances and comparisons to judge a ConvGRU with; for this package's tests and for yours.

    sample_inputs()                 named problems of one layer and direction, odd in many ways
    run(backend, sample, dtype)     output and gradients of a backend on a sample
    reference(sample, dtype)        the same from plain PyTorch in float64
    assert_close_to_reference       one tensor, judged by several criteria at once
    assert_gradients_close          all gradients, each judged so; parameters gate by gate
    TOLERANCES                      the one table of bounds, by dtype and quantity

`python -m convgru_fused.testing [cpu|cuda [BACKEND ...]]` measures the errors that the table comes from and
prints them beside it.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import eager
from .backends import BACKENDS, Problem
from .checks import check_choice, check_device
from .eager import Gradients

__all__ = [
    "LAYOUTS",
    "SMOOTH_VARIANTS",
    "TOLERANCES",
    "Errors",
    "Sample",
    "assert_close_to_reference",
    "assert_gradients_close",
    "autograd_gradients",
    "lay_out",
    "measure",
    "reference",
    "run",
    "sample_inputs",
]

# Comparisons.


@dataclass(frozen=True)
class Errors:
    """How far a tensor is from another, in four numbers without unit; a bound on them is a tolerance.

    Each sees what the others miss: one wrong element disappears in a norm, a small offset that has the same
    sign everywhere disappears among roundings, a wrong scale leaves the angle alone.
    """

    elementwise: float  # largest |error| over largest |expected|
    relative_l2: float  # |error|_2 over |expected|_2
    cosine: float  # 1 - cosine of the angle between the two
    bias: float  # |mean error|, less what chance explains (4 standard errors), over rms expected

    def maximum(self, other: Errors) -> Errors:
        """The larger of the two, number by number; a NaN stays."""
        return Errors(*(a if not a <= b else b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def exceeded(self, bound: Errors) -> list[str]:
        """The names of the criteria that are not within `bound`; a NaN is within none."""
        return [f.name for f in fields(self) if not getattr(self, f.name) <= getattr(bound, f.name)]


NO_ERROR = Errors(0.0, 0.0, 0.0, 0.0)
_STANDARD_ERRORS = 4  # chance alone exceeds 4 standard errors once in 16,000 tensors
_PART = 0.1  # a part counts as at least a tenth of the whole: a sum that cancelled has no digits to judge


def measure(actual: Tensor, expected: Tensor, *, whole: Tensor | None = None) -> Errors:
    """The errors of `actual` against `expected`, computed in float64. Zero against zero is no error.

    If `expected` is a part of `whole` and small in it, errors are relative to a tenth of the whole's size.
    """
    n = actual.numel()
    if n == 0:
        return NO_ERROR
    a, e = _float64(actual).flatten(), _float64(expected).flatten()
    error = a - e
    largest, rms = e.abs().max().item(), _rms(e)
    # Half the squared distance of the unit vectors: 1 - cos without its cancellation.
    if rms and a.any():
        cosine = 0.5 * (a / a.norm() - e / e.norm()).square().sum().item()
    else:
        cosine = float(not a.equal(e))
    if whole is not None:
        largest = max(largest, _PART * whole.abs().max().item())
        rms = max(rms, _PART * _rms(_float64(whole)))
    chance = _STANDARD_ERRORS * _rms(error) / math.sqrt(n)
    return Errors(
        elementwise=_ratio(error.abs().max().item(), largest),
        relative_l2=_ratio(_rms(error), rms),
        cosine=cosine,
        bias=_ratio(_positive(error.mean().abs().item() - chance), rms),
    )


def _float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float64)


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def _ratio(error: float, scale: float) -> float:
    """error / scale; infinite for any error of what should be zero."""
    return 0.0 if error == 0 else error / scale if scale else math.inf


def _positive(x: float) -> float:
    return 0.0 if x < 0 else x  # a NaN stays


# The numbers below are what `python -m convgru_fused.testing` prints: the largest error over all samples and
# backends on either of two machines (torch 2.13.0, x86-64; one with AVX-512, where PyTorch has native
# bfloat16, one with AVX2 alone). The margin is 4 where other machines sum in another order, and
# 2 where errors come from rounding what is stored, which is the same everywhere. A systematic error may be a
# tenth of the whole one: all that were measured are below that.


def _bound(elementwise: float, relative_l2: float, cosine: float, *, margin: float) -> Errors:
    """The tolerance that follows from measured errors; that of the cosine is a square."""
    bias = margin * relative_l2 / 10
    return Errors(margin * elementwise, margin * relative_l2, margin**2 * cosine, bias)


TOLERANCES: dict[tuple[torch.dtype, str], Errors] = {
    (torch.float64, "output"): _bound(2.5e-15, 7.2e-16, 2.7e-31, margin=4),
    (torch.float64, "gradients"): _bound(3.7e-15, 3.2e-15, 2.0e-30, margin=4),
    (torch.float32, "output"): _bound(3.2e-06, 8.2e-07, 3.3e-13, margin=4),
    (torch.float32, "gradients"): _bound(2.7e-06, 3.6e-06, 1.5e-12, margin=4),
    (torch.bfloat16, "output"): _bound(1.2e-02, 5.2e-03, 1.4e-05, margin=2),
    (torch.bfloat16, "gradients"): _bound(4.3e-02, 5.6e-02, 1.5e-04, margin=2),
    (torch.float16, "output"): _bound(1.4e-03, 6.3e-04, 1.9e-07, margin=2),
    (torch.float16, "gradients"): _bound(3.7e-03, 3.7e-03, 3.4e-06, margin=2),
}
"""Bounds by dtype and quantity, "output" or "gradients", on the difference from the float64 reference."""


def _location(flat_index: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        flat_index, position = divmod(flat_index, size)
        index.append(position)
    return tuple(reversed(index))


def _complaint(
    actual: Tensor, expected: Tensor, name: str, bound: Errors, whole: Tensor | None = None
) -> str:
    """Why `actual` is not close to `expected`, or ""."""
    if actual.shape != expected.shape:
        return f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    errors = measure(actual, expected, whole=whole)
    exceeded = errors.exceeded(bound)
    if not exceeded:
        return ""
    lines = [f"{name}: not close to the reference"]
    lines += [f"  {key}: {getattr(errors, key):.2e}, allowed {getattr(bound, key):.2e}" for key in exceeded]
    a, e = _float64(actual), _float64(expected)
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
    """Asserts that `actual` is within `tolerance` of `expected`, by default that of outputs in its dtype.

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
    """Asserts that two sets of named gradients are close: the same names, None in the same places, and each
    tensor within `tolerance`, by default that of gradients in its dtype.

    Gradients named weight_* and bias_* are judged for each gate apart: those of r are often a tenth of those
    of n, and an error in them would not be seen in the whole.

    Raises:
        AssertionError: as `assert_close_to_reference`, for every tensor that fails.
    """
    actual, expected = (g._asdict() if isinstance(g, Gradients) else g for g in (actual, expected))
    if actual.keys() != expected.keys():
        names = ", ".join(expected), ", ".join(actual)
        raise AssertionError(f"gradients: expected those of {names[0]}, got those of {names[1]}")
    complaints = []
    for name, expected_gradient in expected.items():
        gradient = actual[name]
        if gradient is None or expected_gradient is None:
            if gradient is not expected_gradient:
                missing, present = ("None", "a gradient") if gradient is None else ("a gradient", "None")
                complaints.append(f"grad {name}: expected {present}, got {missing}")
            continue
        bound = tolerance or TOLERANCES[gradient.dtype, "gradients"]
        if gradient.shape != expected_gradient.shape:  # of which the parts are not comparable
            complaints.append(_complaint(gradient, expected_gradient, f"grad {name}", bound))
            continue
        for part, (a, e) in _gates(name, gradient, expected_gradient).items():
            complaints.append(_complaint(a, e, f"grad {part}", bound, expected_gradient))
    complaints = [complaint for complaint in complaints if complaint]
    if complaints:
        raise AssertionError("\n".join(complaints))


def _gates(name: str, *gradients: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The gradients of one argument in the parts that are judged apart, by name."""
    if not name.startswith(("weight_", "bias_")):
        return {name: gradients}
    parts = zip(*(gradient.chunk(3) for gradient in gradients), strict=True)
    return {f"{name}[{gate}]": part for gate, part in zip("rzn", parts, strict=True)}


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
    layout: str = "contiguous"  # of every image; one of LAYOUTS
    variant: str = "gru-rcn"
    reverse: bool = False
    input_scale: float = 1.0  # of the input's standard deviation

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
        # Everything is drawn, needed or not: samples that differ in one option differ in nothing else.
        input = normal(T, N, C, H, W, scale=self.input_scale)
        hx = normal(N, K, H, W, scale=0.5)
        weight_ih = normal(3 * K, C, kh, kw, scale=1 / math.sqrt(C * kh * kw))
        weight_hh = normal(3 * K, K, kh, kw, scale=1 / math.sqrt(K * kh * kw))
        bias_ih, bias_hh = normal(3 * K, scale=0.5), normal(3 * K, scale=0.5)
        gate_bias = normal(T, N, 3 * K, *gate_pixels, scale=0.5)

        def leaf(tensor: Tensor, wanted: bool, *, image: bool = False) -> Tensor | None:
            if not wanted:
                return None
            tensor = tensor.to(device=device, dtype=dtype)
            return (lay_out(tensor, self.layout) if image else tensor).requires_grad_(requires_grad)

        return (
            leaf(input, self.input, image=True),
            leaf(hx, self.hx, image=True),
            leaf(weight_ih, self.input),
            leaf(weight_hh, True),
            leaf(bias_ih, self.bias and self.input),
            leaf(bias_hh, self.bias),
            leaf(gate_bias, bool(self.gate_bias), image=True),
            None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.int64, device=device),
            self.variant,
            self.reverse,
        )

    def grad_output(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """A gradient (T,N,K,H,W) for the output, in the sample's layout."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + 1)
        shape = (self.T, self.N, self.K, self.H, self.W)
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        return lay_out(gradient.to(device=device, dtype=dtype), self.layout)

    def __str__(self) -> str:
        return self.name


LAYOUTS = ("contiguous", "channels_last", "strided", "expanded")


def lay_out(images: Tensor, layout: str) -> Tensor:
    """A copy of images (...,C,H,W) in `layout`, one of LAYOUTS.

    "strided" leaves gaps of NaN in memory; "expanded" repeats the first along the first axis, without memory.
    """
    if layout == "channels_last":
        return images.movedim(-3, -1).contiguous().movedim(-1, -3)
    if layout == "strided":
        buffer = images.new_full((*images.shape[:-1], 2 * images.size(-1) + 1), math.nan)
        buffer[..., 1::2] = images
        return buffer[..., 1::2]
    if layout == "expanded":
        return images[:1].clone().expand_as(images)
    return images.clone(memory_format=torch.contiguous_format)


# Each case is there for the reason in its name; the sizes are odd on purpose, and small.
_CASES: dict[str, dict[str, Any]] = {
    "plain": dict(T=4, N=2, C=3, K=8, H=5, W=9),
    "one-step": dict(T=1, N=1, C=8, K=3, H=5, W=9),
    "one-step-hx": dict(T=1, N=2, C=8, K=3, H=5, W=9, hx=True),
    "1x1-image": dict(T=5, N=3, C=17, K=8, H=1, W=1, kernel=(1, 1), hx=True),
    "kernel-beyond-image": dict(T=3, N=2, C=3, K=8, H=1, W=1, hx=True),
    "1x7-image": dict(T=3, N=2, C=8, K=17, H=1, W=7, kernel=(1, 5), hx=True),
    "one-channel": dict(T=7, N=3, C=1, K=1, H=5, W=9, hx=True),
    "kernel-1x1": dict(T=3, N=2, C=17, K=8, H=5, W=9, kernel=(1, 1)),
    "kernel-5x1": dict(T=4, N=1, C=3, K=8, H=13, W=17, kernel=(5, 1), hx=True),
    "kernel-3x5": dict(T=3, N=2, C=3, K=17, H=5, W=9, kernel=(3, 5), hx=True, lengths=(3, 2)),
    "kernel-7x7": dict(T=3, N=1, C=8, K=3, H=13, W=17, kernel=(7, 7)),
    "no-bias": dict(T=4, N=2, C=8, K=8, H=5, W=9, bias=False),
    "no-bias-hx": dict(T=4, N=2, C=8, K=8, H=5, W=9, bias=False, hx=True),
    "lengths": dict(T=6, N=3, C=3, K=8, H=5, W=9, lengths=(6, 0, 1)),
    "lengths-hx": dict(T=7, N=3, C=3, K=8, H=5, W=9, hx=True, lengths=(3, 7, 0)),
    "lengths-all-zero": dict(T=3, N=2, C=3, K=8, H=5, W=9, hx=True, lengths=(0, 0)),
    "gate-bias": dict(T=4, N=2, C=3, K=8, H=5, W=9, hx=True, gate_bias="full"),
    "gate-bias-1x1": dict(T=4, N=2, C=3, K=8, H=5, W=9, gate_bias="1x1"),
    "no-input": dict(T=4, N=2, C=3, K=8, H=5, W=9, input=False, gate_bias="full"),
    "no-input-1x1": dict(T=4, N=2, C=3, K=8, H=5, W=9, input=False, hx=True, gate_bias="1x1"),
    "channels-last": dict(T=4, N=2, C=8, K=8, H=5, W=9, hx=True, gate_bias="full", layout="channels_last"),
    "strided": dict(T=4, N=2, C=8, K=3, H=5, W=9, hx=True, gate_bias="full", layout="strided"),
    "expanded": dict(T=4, N=3, C=3, K=8, H=5, W=9, hx=True, gate_bias="full", layout="expanded"),
    "channels-of-16": dict(T=3, N=2, C=32, K=16, H=13, W=17, hx=True),
    "channels-of-16-1x5": dict(T=3, N=2, C=16, K=32, H=5, W=17, kernel=(1, 5), hx=True),
    "channels-of-16-5x1": dict(T=3, N=2, C=16, K=16, H=13, W=9, kernel=(5, 1), lengths=(3, 2)),
    "everything": dict(T=5, N=3, C=17, K=17, H=13, W=17, hx=True, gate_bias="full", lengths=(2, 5, 4)),
}


SMOOTH_VARIANTS = ("gru-rcn", "cudnn")


def sample_inputs(
    select: Callable[[Sample], bool] = lambda sample: True, variants: Iterable[str] = SMOOTH_VARIANTS
) -> Iterator[Sample]:
    """The samples that `select` accepts: every case in the variants and both directions of time.

    "gru-rcn-relu" comes on request: two right gradients of it differ where rounding decides on which side of
    zero a pre-activation lies, so below float64 they are compared otherwise (tests/test_relu.py).
    """
    for case, variant, reverse in product(_CASES, variants, (False, True)):
        name = f"{case}-{variant}{'-reverse' if reverse else ''}"
        sample = Sample(name, **_CASES[case], variant=variant, reverse=reverse)
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
    """The gradients of those arguments that ask for one, zeros where unused (T=0); None for the others."""
    leaves = args[: len(Gradients._fields)]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    gradients = iter(torch.autograd.grad(output, wanted, grad_output, materialize_grads=True))
    return Gradients(*(next(gradients) if any(leaf is w for w in wanted) else None for leaf in leaves))


@cache
def reference(sample: Sample, dtype: torch.dtype) -> tuple[Tensor, Gradients]:
    """What `run` should give: plain PyTorch in float64, on the values that `dtype` holds; do not modify."""
    args: Arguments = tuple(
        arg.detach().double().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in sample.arguments(dtype)
    )
    output = eager.conv_gru(*args)
    return output.detach(), autograd_gradients(output, args, sample.grad_output(dtype).double())


# Where the table of tolerances comes from.


def _errors(backend: str, sample: Sample) -> dict[str, tuple[float, float]]:
    """Of the output and each gradient of `sample` in fp32 the largest error against float64, and the rms."""
    expected_output, expected_gradients = reference(sample, torch.float32)
    expected = {"output": expected_output, **expected_gradients._asdict()}
    output, gradients = run(backend, sample, torch.float32)
    errors = {
        name: tensor.double() - expected[name]
        for name, tensor in {"output": output, **gradients._asdict()}.items()
        if tensor is not None
    }
    return {name: (error.abs().max().item(), _rms(error)) for name, error in errors.items()}


@cache
def _errors_of_pytorch(sample: Sample) -> dict[str, tuple[float, float]]:
    return _errors("eager", sample)


def error_ratios(sample: Sample) -> dict[str, tuple[float, float]]:
    """How much larger the fp32 errors of backend "cpu" are than those of "eager": for the output and each
    gradient the ratio of the largest errors against float64 and that of their rms."""
    ours = _errors("cpu", sample)
    return {
        name: (ours[name][0] / largest, ours[name][1] / rms)
        for name, (largest, rms) in _errors_of_pytorch(sample).items()
    }


def _by_hand(sample: Sample, dtype: torch.dtype) -> tuple[Tensor, Gradients]:
    """As `run`, with the hand-derived backward of eager.py."""
    args = sample.arguments(dtype)
    return eager.conv_gru(*args), eager.conv_gru_backward(sample.grad_output(dtype), *args)


def _measure_sample(
    output: Tensor, gradients: Gradients, sample: Sample, dtype: torch.dtype
) -> dict[str, Errors]:
    """The largest errors of each quantity, judged as assert_gradients_close judges."""
    expected_output, expected_gradients = reference(sample, dtype)
    worst = NO_ERROR
    for name, actual, expected in zip(Gradients._fields, gradients, expected_gradients, strict=True):
        if actual is not None and expected is not None:
            for a, e in _gates(name, actual, expected).values():
                worst = worst.maximum(measure(a, e, whole=expected))
    return {"output": measure(output, expected_output), "gradients": worst}


def main(device: str = "cpu", *names: str) -> None:
    """Prints the largest errors over all samples, by dtype, quantity and backend (these, or all), and the
    table's bounds."""
    for name in names:
        check_choice("backend", name, BACKENDS)
    Runner = Callable[[Sample, torch.dtype], tuple[Tensor, Gradients]]
    print(f"{'':18} {'':8}", *(f"{field.name:>12}" for field in fields(Errors)))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        runners: dict[str, Runner] = {
            name: partial(run, name, device=device)
            for name, backend in BACKENDS.items()
            if name in (names or BACKENDS)
            and not backend.unsupported_reasons(Problem(device, dtype, "gru-rcn", forward_ad=False))
        }
        # The hand-derived backward is there to be compared with in float64 and rounds more often in others.
        is_exact = dtype == torch.float64 and device == "cpu"
        functions = {**runners, "by hand": _by_hand} if is_exact else runners
        rows = {(q, name): NO_ERROR for q in ("output", "gradients") for name in functions}
        for sample, (name, function) in product(sample_inputs(), functions.items()):
            for quantity, measured in _measure_sample(*function(sample, dtype), sample, dtype).items():
                rows[quantity, name] = rows[quantity, name].maximum(measured)
        rows.update({(q, "allowed"): TOLERANCES[dtype, q] for q in ("output", "gradients")})
        for (quantity, name), measured in sorted(rows.items(), key=lambda row: row[0][0], reverse=True):
            label = f"{str(dtype).removeprefix('torch.')} {quantity}"
            print(f"{label:18} {name:8}", *(f"{value:12.1e}" for value in astuple(measured)))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the problems are small: more threads would wait for each other
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("device", nargs="?", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("names", nargs="*", metavar="backend", help="(default: all)")
    given = parser.parse_args()
    try:
        check_device("device", given.device)
        main(given.device, *given.names)
    except ValueError as error:
        parser.error(str(error))
