"""Whole models, as they are and fused: the time of their ConvGRUs, and from end to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import fuse
from . import timing
from .check import Error
from .measure import Say, Settings, first_line, timed
from .published import raft
from .results import FAILED, NOT_APPLICABLE, OK, WRONG, Record

UPDATES = 12  # of the flow in one call
HEIGHT, WIDTH = 440, 1024

FLOW_LIMITS = {"fast": 1e-3, "strict": 1e-4}  # pixels, largest difference of the last flow
GRADIENT_LIMIT = 1e-3  # |difference| over |gradient|, in the L2 norm, of all parameters together

CELLS = ("convgru1", "convgru2")

CELLS_FORWARD = "[ConvGRU forward]"  # after the name of a model: the time spent there alone

ORIGINAL, FUSED = "eager", "fused"


def frames(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Two images (1,3,H,W) in -1 to 1: smooth noise, and the same moved by a few pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, HEIGHT // 8 + 2, WIDTH // 8 + 2, generator=generator) * 2 - 1
    scene = F.interpolate(coarse, scale_factor=8, mode="bicubic", align_corners=False).clamp(-1, 1)
    pair = (scene[..., y : y + HEIGHT, x : x + WIDTH] for y, x in ((4, 4), (7, 9)))
    first, second = (image.contiguous().to(device, dtype) for image in pair)
    return first, second


class _Model(timing.Untended):
    """A model in one mode, for the clock; adds up the time spent in its cells."""

    def __init__(
        self, model: nn.Module, cells: list[nn.Module], mode: str, images: tuple[Tensor, Tensor]
    ) -> None:
        self.model, self.mode, self.images = model, mode, images
        self.device = images[0].device
        self.gru_seconds: list[float] = []
        self.flows: list[Tensor] = []
        for cell in cells:
            cell.register_forward_pre_hook(self._before)
            cell.register_forward_hook(self._after)

    def _before(self, *_: object) -> None:
        timing.synchronize(self.device)
        self._start = time.perf_counter()

    def _after(self, *_: object) -> None:
        timing.synchronize(self.device)
        self.gru_seconds[-1] += time.perf_counter() - self._start

    def __call__(self) -> None:
        self.gru_seconds.append(0.0)
        if self.mode == "forward":
            with torch.inference_mode():
                self.flows = self.model(*self.images, num_flow_updates=UPDATES)
            return
        self.model.zero_grad(set_to_none=True)
        self.flows = self.model(*self.images, num_flow_updates=UPDATES)
        # RAFT's loss, later updates counting more, with no flow at all for the truth.
        loss = sum(0.8 ** (UPDATES - 1 - i) * flow.abs().mean() for i, flow in enumerate(self.flows))
        assert isinstance(loss, Tensor)
        loss.backward()

    def gradient(self) -> Tensor:
        """Of all parameters, one after the other."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def measure_model(name: str, settings: Settings, say: Say = lambda line: None) -> Iterator[list[Record]]:
    """Yields the records of a model fused and as it is, from end to end and for its cells' forward, mode by
    mode."""
    for mode in settings.modes:
        say(f"{name} {mode}: building")
        try:
            yield _measure(name, mode, settings, say)
        except ModuleNotFoundError as error:
            yield [Record(name, mode, FUSED, True, NOT_APPLICABLE, str(error))]
        except Exception as error:  # as for a contender: its trouble must not end the others' benchmark
            yield [Record(name, mode, FUSED, True, FAILED, first_line(error))]


def _measure(name: str, mode: str, settings: Settings, say: Say) -> list[Record]:
    images = frames(settings.device, settings.dtype, settings.seed)
    programs: dict[str, _Model] = {}
    detail = ""
    for contender in (FUSED, ORIGINAL):
        model = raft(seed=settings.seed).to(settings.device, settings.dtype)
        cells = [model.get_submodule(f"update_block.recurrent_block.{cell}") for cell in CELLS]
        if contender == FUSED:
            report = fuse(model, tuple(image[..., :128, :160] for image in images))
            detail = f"{len(report.replaced)} of {len(cells)} cells replaced"
        programs[contender] = _Model(model, cells, mode, images)
    say(f"{name} {mode}: checking")
    errors = _errors(programs, mode, settings.precision)
    wrong = [tensor for tensor, error in errors.items() if not error.ok]
    status = WRONG if wrong else OK
    note = ", ".join(
        f"{t} is off by {errors[t].largest:.1e} (allowed {errors[t].largest_limit:.0e})" for t in wrong
    )
    ours = Record(name, mode, FUSED, True, status, note, detail, errors=errors)
    peer = Record(name, mode, ORIGINAL, False, OK)
    if wrong:
        return [ours, peer]
    say(f"{name} {mode}: timing")
    for program in programs.values():
        program.gru_seconds.clear()
    spreads = timing.interleaved(programs, settings.device, settings.protocol)
    found: list[Record] = []
    for record in (ours, peer):
        found.append(timed(record, spreads[record.contender]))
        gru = timing.Spread.of(programs[record.contender].gru_seconds)
        found.append(timed(replace(record, workload=f"{name}{CELLS_FORWARD}", errors={}), gru))
    return found


def _errors(programs: dict[str, _Model], mode: str, precision: str) -> dict[str, Error]:
    """Of the fused model against the original, in pixels; and of all its gradients."""
    for program in programs.values():
        program()
    ours, original = programs[FUSED], programs[ORIGINAL]
    difference = (ours.flows[-1] - original.flows[-1]).detach()
    limit = FLOW_LIMITS[precision]
    errors = {"flow": _error(difference.abs().max(), difference.square().mean().sqrt(), limit)}
    if mode == "train":
        expected = original.gradient()
        relative = (ours.gradient() - expected).norm() / expected.norm()
        errors["gradients"] = _error(relative, relative, GRADIENT_LIMIT)
    return errors


def _error(largest: Tensor, rms: Tensor, limit: float) -> Error:
    return Error(largest.item(), rms.item(), limit, limit)
