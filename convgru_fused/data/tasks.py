"""Generated tasks that separate local from global motion: one frame does not settle the class.

`convgru_fused.data.generated` says what they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convgru_fused.checks import check_choice, check_int, check_number, check_sizes

from .generated import GeneratedTask


class LimitedLifetimeDots(GeneratedTask):
    """In which of eight directions do the dots move? Local motion only.

    A dot lives for a few frames, each dot with a phase of its own, and is then drawn anew anywhere; so no
    dot can be followed for long. From one frame to the next, a living dot takes part in the motion with a
    probability (the clip's coherence, uniform in a range) and is otherwise drawn anew too. What leaves at
    a border comes back at the opposite one. Every single frame is a number of dots at independent,
    uniform places. C = 1.

    Args:
        length, seed, order: as in `GeneratedTask`. Backwards, the direction is the opposite one.
        frames: T. size: H and W. dots: how many.
        speed: pixels a frame in every axis that moves: diagonals are longer.
        lifetime: frames in which a dot is seen.
        coherence: least and largest.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    classes = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
    STEPS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # rows, columns

    def __init__(
        self,
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        frames: int = 10,
        size: int = 32,
        dots: int = 60,
        speed: int = 2,
        lifetime: int = 2,
        coherence: tuple[float, float] = (0.6, 1.0),
    ) -> None:
        super().__init__(length, seed, order)
        check_int("frames", frames, 2)
        check_int("size", size, 4)
        check_int("dots", dots)
        check_int("speed", speed, 1, (size - 1) // 2)  # at half the size, opposite directions are the same
        check_int("lifetime", lifetime, 2)
        if not isinstance(coherence, Sequence) or len(coherence) != 2:
            raise TypeError(f"coherence: expected a pair of numbers, got {coherence!r}")
        check_number("coherence[0]", coherence[0], 0, 1)
        check_number("coherence[1]", coherence[1], coherence[0], 1)
        self.frames, self.frame_shape = frames, (1, size, size)
        self.dots, self.speed, self.lifetime, self.coherence = dots, speed, lifetime, tuple(coherence)

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        size = self.frame_shape[1]
        low, high = self.coherence
        coherence = low + (high - low) * torch.rand((), generator=generator)
        step = self.speed * torch.tensor(self.STEPS[label])
        birth = torch.randint(self.lifetime, (self.dots,), generator=generator)
        clip = torch.zeros(self.frames, *self.frame_shape)
        places = torch.empty(0)
        for t in range(self.frames):
            anew = torch.randint(size, (self.dots, 2), generator=generator)
            takes_part = torch.rand(self.dots, generator=generator) < coherence
            moves = takes_part & ((t + birth) % self.lifetime != 0)
            places = torch.where(moves[:, None], (places + step) % size, anew) if t else anew
            clip[t, 0, places[:, 0], places[:, 1]] = 1.0
        return clip

    def reversed_label(self, label: int) -> int:
        return (label + 4) % 8


# Two signs of as many pixels, so that brightness does not tell them apart.
_DIAGONALS = torch.eye(7).maximum(torch.eye(7).flip(0))
_AXES = torch.zeros(7, 7)
_AXES[3] = _AXES[:, 3] = 1.0


class EventOrder(GeneratedTask):
    """Which of two events came first? Order over a long time only.

    Two signs, X (a diagonal cross) or Y (an upright one), are shown for two frames each at random places
    in noise, the first early and the second late, with at least `gap` frames of noise alone between them.
    The classes are XX, XY, YX and YY: a model that is blind to the order of frames can tell all but XY from
    YX, which is right for three clips of four at best; frames of noise alone tell nothing. With `pairs`
    "mixed" there are only XY and YX, so that such a model is at chance. C = 1.

    Windows shorter than the gap are better than that if they see the first event at other places than the
    second; in `EventGap` they need not.

    Args:
        length, seed, order: as in `GeneratedTask`. Backwards, XY is YX.
        gap: least number of frames between the events; the clip has 24 more. The first event begins in frame
            2 to 10, the second in frame gap + 12 to gap + 20.
        size: H and W.
        pairs: "all" or "mixed".
        noise: largest brightness of the noise, which is uniform; a sign's is 1.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    EVENT = 2  # frames

    def __init__(
        self,
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        gap: int = 24,
        size: int = 32,
        pairs: str = "all",
        noise: float = 0.5,
    ) -> None:
        super().__init__(length, seed, order)
        check_int("gap", gap)
        check_int("size", size, len(_AXES))
        check_choice("pairs", pairs, ("all", "mixed"))
        check_number("noise", noise, 0, 1)
        self.classes = ("XX", "XY", "YX", "YY") if pairs == "all" else ("XY", "YX")
        self.frames, self.frame_shape = gap + 24, (1, size, size)
        self.gap, self.noise = gap, noise

    @property
    def order_blind_accuracy(self) -> float:
        """The largest expected accuracy of a model that sees frames, but not their order."""
        return (self.num_classes - 1) / self.num_classes

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        clip = self.noise * torch.rand(self.frames, *self.frame_shape, generator=generator)
        extent = len(_AXES)
        for name, t in zip(self.classes[label], self._times(generator), strict=True):
            row, column = torch.randint(self.frame_shape[1] - extent + 1, (2,), generator=generator).tolist()
            place = clip[t : t + self.EVENT, 0, row : row + extent, column : column + extent]
            place.copy_(place.maximum(_DIAGONALS if name == "X" else _AXES))
        return clip

    def _times(self, generator: torch.Generator) -> list[int]:
        """The frames in which the events begin."""
        late = torch.randint(9, (2,), generator=generator)
        return (torch.tensor([2, self.gap + 12]) + late).tolist()

    def reversed_label(self, label: int) -> int:
        return self.classes.index(self.classes[label][::-1])


class EventGap(EventOrder):
    """`EventOrder` with so many frames between the events as is said: for accuracy against the gap. C = 1.

    Either the first event begins in one of the first `starts` frames, or the second ends in one of the last.

    Windows one after the other whose length divides gap + 2, the way from event to event, see both at the
    same place, so what is added up over the windows says nothing of their order. With other gaps it does,
    even if all places are as frequent: a model to which late places in a window are signs of the first event
    is right more often than not.

    Args:
        length, seed, order, size, pairs, noise: as in `EventOrder`.
        frames: T.
        gaps: numbers of frames of noise alone between the events, of which each clip has one at random.
        starts: how many.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        frames: int = 30,
        gaps: Sequence[int] = (2, 4, 8, 18),
        starts: int = 9,
        size: int = 32,
        pairs: str = "all",
        noise: float = 0.5,
    ) -> None:
        self.gaps = check_sizes("gaps", gaps)
        super().__init__(length, seed, order, gap=min(self.gaps), size=size, pairs=pairs, noise=noise)
        check_int("starts", starts)
        check_int("frames", frames, starts - 1 + max(self.gaps) + 2 * self.EVENT)
        self.frames, self.starts = frames, starts

    def _times(self, generator: torch.Generator) -> list[int]:
        gap = self.gaps[int(torch.randint(len(self.gaps), (), generator=generator))]
        at_the_end = bool(torch.randint(2, (), generator=generator))
        offset = self.frames - (self.starts - 1 + gap + 2 * self.EVENT) if at_the_end else 0
        first = offset + int(torch.randint(self.starts, (), generator=generator))
        return [first, first + self.EVENT + gap]


class PathTracker(GeneratedTask):
    """Does the dot that begins in the start marker end in the goal marker? Local motion, kept for long.

    Equal dots move on smooth, crossing paths. The start marker is in the first frame alone, the goal marker
    in the last: where another dot ends, both have exchanged their ends, which are drawn alike. So every
    single frame, and the first and last together, are distributed alike in both classes. A simple relative
    of PathTracker (Linsley et al. 2021). C = 3: dots, start marker, goal marker.

    Args:
        length, seed, order: as in `GeneratedTask`. Backwards, the markers are exchanged; the label stays.
        frames: T. size: H and W.
        distractors: dots beside the one that begins in the start marker.
        reach: how far each dot's start and end are from its centre, rows and columns, pixels. With the
            largest, they are anywhere; the smaller, the slower and the closer together are the two dots.
        wander: how far paths leave the straight line, pixels.
        spans: to learn from, numbers of frames from one marker to the other, of which each clip has one at
            random, at a random time of the same paths. What is close in time is mostly close in place too,
            so markers that are less than T - 1 frames apart say something about the class by themselves.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    classes = ("another dot", "the same dot")
    APART = 4.0  # least distance of two starts, and of two ends, pixels
    BORDER = 2  # pixels without a start or end, for markers of 3x3 pixels

    def __init__(
        self,
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        frames: int = 32,
        size: int = 32,
        distractors: int = 4,
        reach: float = 6.0,
        wander: float = 4.0,
        spans: Sequence[int] | None = None,
    ) -> None:
        super().__init__(length, seed, order)
        check_int("frames", frames, 2)
        check_int("size", size, 16)
        most = int(((size - 2 * self.BORDER) / self.APART) ** 2 / 4)  # sparse enough to find places
        check_int("distractors", distractors, 1, most - 1)
        check_number("reach", reach, self.APART, (size - 1) / 2 - self.BORDER)
        check_number("wander", wander, 0, size)
        self.frames, self.frame_shape = frames, (3, size, size)
        self.spans = (frames - 1,) if spans is None else check_sizes("spans", spans)
        if max(self.spans) >= frames:
            raise ValueError(f"spans: expected numbers below frames={frames}, got {spans!r}")
        self.distractors, self.reach, self.wander = distractors, float(reach), float(wander)

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        starts, ends = self._places(generator)
        if label == 0:
            ends[:2] = ends[:2].flip(0)
        paths = self._paths(starts, ends, generator)
        clip = torch.zeros(self.frames, *self.frame_shape)
        clip[:, 0] = self._dots(paths)
        first, last = self._times(generator)
        for frame, channel, dot in ((first, 1, 0), (last, 2, 1 - label)):
            row, column = paths[frame, dot].round().clamp(1, self.frame_shape[1] - 2).int().tolist()
            clip[frame, channel, row - 1 : row + 2, column - 1 : column + 2] = 1.0
        return clip

    def _places(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and ends (dots,2), no two of either close. The first two dots have the same centre, so that
        either one's end could be the other's."""
        low, span = self.BORDER + self.reach, self.frame_shape[1] - 1 - 2 * (self.BORDER + self.reach)
        while True:
            centres = low + span * torch.rand(self.distractors + 1, 2, generator=generator)
            centres[1] = centres[0]
            starts, ends = self._apart(centres, generator), self._apart(centres, generator)
            if starts is not None and ends is not None:
                return starts, ends

    def _apart(self, centres: Tensor, generator: torch.Generator) -> Tensor | None:
        """Places (dots,2) within reach of the centres, no two of them close: the first of 200 draws that is
        so, which treats all dots alike."""
        places = centres + self.reach * (2 * torch.rand(200, *centres.shape, generator=generator) - 1)
        close = torch.cdist(places, places) < self.APART  # each dot is close to itself
        good = (close.sum((1, 2)) == len(centres)).nonzero()
        return places[good[0, 0]] if len(good) else None

    def _times(self, generator: torch.Generator) -> tuple[int, int]:
        """The frames of the start and of the goal marker."""
        if self.spans == (self.frames - 1,):
            return 0, self.frames - 1
        span = self.spans[int(torch.randint(len(self.spans), (), generator=generator))]
        first = int(torch.randint(self.frames - span, (), generator=generator))
        return first, first + span

    def _paths(self, starts: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
        """(T,dots,2): straight lines and slow waves that are 0 at both ends, reflected at borders."""
        time = torch.linspace(0, 1, self.frames)[:, None, None]
        paths = starts + (ends - starts) * time
        for wave in range(1, max(2, self.frames // 8) + 1):  # more of them in longer clips
            size = self.wander / wave * torch.randn(starts.shape, generator=generator)
            paths = paths + size * torch.sin(math.pi * wave * time)
        most = self.frame_shape[1] - 1
        return most - (paths.remainder(2 * most) - most).abs()

    def _dots(self, paths: Tensor) -> Tensor:
        """(T,H,W): dots of one pixel's brightness, spread over four pixels as in bilinear interpolation."""
        pixels = torch.arange(self.frame_shape[1], dtype=paths.dtype)
        rows, columns = ((1 - (paths[..., axis, None] - pixels).abs()).clamp(min=0) for axis in (0, 1))
        return torch.einsum("tdh,tdw->thw", rows, columns).clamp(max=1)  # (T,dots,H), (T,dots,W)

    def reverse(self, clip: Tensor) -> Tensor:
        return clip.flip(0)[:, [0, 2, 1]]

    def reversed_label(self, label: int) -> int:
        return label
