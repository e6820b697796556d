"""Is a contender's result right? Nothing is timed before this says so.

The reference is the paper's formulas, word for word, in float64 on the same numbers. The yardstick is the
`eager` peer in the dtype of the run: what plain PyTorch gets wrong by rounding. For every tensor (the states;
in training all gradients too)

    largest error <= max(16 x the yardstick's, 16 x floor)      rms error <= max(8 x the yardstick's, floor)

where an element's error is taken relative to its own size plus the rms of the tensor, and the rms error
relative to that rms. 16 and 8 are what the package allows its fast algorithms (docs/cpu.md). The floor is
there because a yardstick can be lucky, above all on a bias gradient of a few elements: a sum of n rounded
terms is off by about sqrt(n) units of float32, and storage in a coarser type adds two units of that type. The
largest of many errors is taken to be 16 times their rms, well above the 6 standard deviations that a hundred
million normally distributed ones reach.

The yardstick has nobody to be measured against. It must keep to the floor, with the storage term growing with
sqrt(T) because autograd adds up its gradients in the type of the run; otherwise the floor alone decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import formulations
from .program import Job, Program
from .workloads import Workload

LARGEST_FACTOR, RMS_FACTOR = 16, 8
_FLOAT32_UNIT = 2.0**-24
_UNITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_TF32_UNIT = 2.0**-11


@dataclass(frozen=True)
class Error:
    """The error of one tensor and what is allowed."""

    largest: float
    rms: float
    largest_limit: float
    rms_limit: float

    @property
    def ok(self) -> bool:
        return self.largest <= self.largest_limit and self.rms <= self.rms_limit  # false for NaN

    @property
    def severity(self) -> float:
        """How many times its limit the error is."""
        ratios = (self.largest / self.largest_limit, self.rms / self.rms_limit)
        return math.inf if any(math.isnan(ratio) for ratio in ratios) else max(ratios)


Errors = dict[str, Error]


def worst(errors: Errors) -> tuple[str, Error]:
    """The tensor that is furthest above (or least below) its limit."""
    return max(errors.items(), key=lambda item: item[1].severity)


def relative_errors(found: Tensor, reference: Tensor) -> tuple[float, float]:
    """Largest and rms error against the float64 reference, as defined above; infinite for a wrong shape or
    NaN."""
    if found.shape != reference.shape:
        return math.inf, math.inf
    difference = found.double() - reference
    scale = reference.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    largest = (difference / (reference.abs() + scale)).abs().max()
    rms = difference.square().mean().sqrt() / scale
    if not torch.isfinite(largest + rms):
        return math.inf, math.inf
    return largest.item(), rms.item()


def summed_terms(workload: Workload, tensor: str, batch: int) -> int:
    """How many terms are added up, one convolution after the other, on the way to an element of a result: in
    a step of the forward pass for "output"; in a step of the backward pass, too, for a gradient; and over all
    steps, samples and pixels for a parameter's gradient."""
    taps = max(kh * kw for kh, kw in workload.kernels)
    terms = taps * (workload.input_size + workload.hidden_size)
    if tensor.startswith("grad"):
        terms += taps * 3 * workload.hidden_size
    if tensor.startswith(("grad_weight", "grad_bias")):
        terms += workload.steps * batch * workload.height * workload.width
    return terms


class Referee:
    """Judges every contender of one workload on one set of data; computes the reference once for both
    modes."""

    def __init__(self, job: Job, modes: tuple[str, ...], tf32: bool = False) -> None:
        self.workload = job.workload
        self.unit = max(_UNITS[job.dtype], _TF32_UNIT if tf32 else 0.0)
        job = replace(job, sets=job.sets[:1], mode="train" if "train" in modes else "forward")
        exact = replace(job, sets=(job.sets[0].to(torch.float64),))
        self.batch = job.sets[0].x.size(1)
        self.reference = Program(exact, formulations.naive(exact), cudnn_benchmark=False).results()
        yardstick = Program(job, formulations.eager(job), cudnn_benchmark=False).results()
        errors = self._errors(yardstick, storage_units=2 * math.sqrt(job.workload.steps))
        self.yardstick = {name: error for name, error in errors.items() if error.ok}

    def judge(self, program: Program) -> Errors:
        """The errors of everything that the program computes."""
        errors = self._errors(program.results(), storage_units=2)
        for name, yardstick in self.yardstick.items():
            if name in errors:
                error = errors[name]
                errors[name] = replace(
                    error,
                    largest_limit=max(error.largest_limit, LARGEST_FACTOR * yardstick.largest),
                    rms_limit=max(error.rms_limit, RMS_FACTOR * yardstick.rms),
                )
        return errors

    def _errors(self, found: dict[str, Tensor], storage_units: float) -> Errors:
        errors = {}
        for name, tensor in found.items():
            terms = summed_terms(self.workload, name, self.batch)
            floor = storage_units * self.unit + math.sqrt(terms) * min(_FLOAT32_UNIT, self.unit)
            relative = relative_errors(tensor, self.reference[name])
            errors[name] = Error(*relative, largest_limit=LARGEST_FACTOR * floor, rms_limit=floor)
        return errors
