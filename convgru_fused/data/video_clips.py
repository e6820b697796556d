"""Clips of videos: pieces of consecutive frames, cut out and resized as the papers do it.

`check_videos` decodes every file once, so that what is wrong with one is known, with its name, before a
worker meets it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from convgru_fused.checks import check_bool, check_choice, check_int, check_number, check_sizes
from convgru_fused.files import replace_file

from .decoding import VideoInfo, probe, read_frames
from .folders import VideoList
from .generated import ORDERS, LabelledClips, generator_of, shuffle

SHORT_SIDE = 256  # of a frame, in whose pixels the sides of crops are given
CROP_SIDES = (256, 224, 192, 168)  # Ballas et al. 2016


@dataclass(frozen=True)
class CheckedVideos:
    """Videos of which clips can be cut."""

    videos: VideoList
    infos: tuple[VideoInfo, ...]


def check_videos(
    videos: VideoList,
    frames: int = 10,
    *,
    rate: float | None = None,
    on_error: str = "raise",
    index: Path | None = None,
) -> CheckedVideos:
    """Decodes every video once.

    Args:
        videos: the list.
        frames: that a video must have.
        rate: frames a second that a video must have, to within a hundredth; None: any.
        on_error: what to do with one that cannot be used: "raise" a ValueError that names it and the reason,
            or "skip" it with a warning that does.
        index: a file that remembers what was found, by path, size and time of change.

    Raises ValueError also if none can be used.
    """
    check_int("frames", frames)
    check_choice("on_error", on_error, ("raise", "skip"))
    if rate is not None:
        check_number("rate", rate, 0)
    known = _read_index(index)
    kept: list[tuple[Path, int, VideoInfo]] = []
    for file, label in zip(videos.files, videos.labels, strict=True):
        try:
            info = _info(file, known)
            if info.frames < frames:
                raise ValueError(f"{file}: expected at least {frames} frames, got {info.frames}")
            if rate is not None and (info.rate is None or abs(info.rate - rate) > rate / 100):
                raise ValueError(f"{file}: expected {rate} frames a second, got {info.rate}")
        except ValueError as error:
            if on_error == "raise":
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            kept.append((file, label, info))
    if index is not None:
        replace_file(index, lambda part: part.write_text(json.dumps(known)))
    if not kept:
        raise ValueError(f"videos: expected at least one that can be used, got none of {len(videos)}")
    files, labels, infos = zip(*kept, strict=True)
    return CheckedVideos(VideoList(files, labels, videos.classes), infos)


def _read_index(index: Path | None) -> dict[str, dict[str, object]]:
    if index is None or not index.exists():
        return {}
    try:
        return dict(json.loads(index.read_text()))
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{index}: videos are looked at again: {error}", stacklevel=3)
        return {}


def _info(file: Path, known: dict[str, dict[str, object]]) -> VideoInfo:
    try:
        status = file.stat()
    except OSError as error:
        raise ValueError(f"{file}: expected a video, got: {error.strerror}") from None
    if status.st_size == 0:
        raise ValueError(f"{file}: expected a video, got a file of no bytes")
    is_same = {"size": status.st_size, "changed": status.st_mtime_ns}
    entry = known.get(str(file))
    if not isinstance(entry, dict) or any(entry.get(name) != value for name, value in is_same.items()):
        entry = known[str(file)] = {**is_same, **asdict(probe(file))}
    return VideoInfo(*(entry[name] for name in ("frames", "width", "height", "rate")))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Place:
    """Where a clip is cut out of a video."""

    video: int
    numbers: range  # of the frames
    side: int  # of the square, in the file's pixels
    top: int
    left: int
    mirrored: bool
    generator: torch.Generator  # of the item's further random numbers

    def crop(self, images: Tensor) -> Tensor:
        """(...,H,W) -> (...,side,side)."""
        return images[..., self.top : self.top + self.side, self.left : self.left + self.side]


class VideoClips(LabelledClips):
    """Clips to train on: of every video in turn one at a random time, a random square cut out of it and
    resized, mirrored or not (as in Ballas et al. 2016).

    Item i is (T,3,H,W), float32 in 0..1, and its label; it depends on the seed and i alone. Every len(videos)
    items visit every video once, in an order of their own.

    Args:
        checked: from `check_videos`, with at least the frames that a clip spans.
        length: how many clips.
        seed: any int of at least 0.
        frames: T.
        size: (H,W).
        stride: from one frame of a clip to the next.
        crop_sides: sides of the square, one of them at random, where the short side of a frame has 256.
        mirror: whether every other clip, at random, is mirrored.
        order: of a clip's frames: "forward", "reversed" or "shuffled" (`GeneratedTask`), as a control.

    Raises TypeError or ValueError naming the argument.

    Attributes: those of `LabelledClips`; frame_shape is (3,H,W).
    """

    def __init__(
        self,
        checked: CheckedVideos,
        length: int,
        seed: int = 0,
        *,
        frames: int = 10,
        size: Sequence[int] = (224, 224),
        stride: int = 1,
        crop_sides: Sequence[int] = CROP_SIDES,
        mirror: bool = True,
        order: str = "forward",
    ) -> None:
        check_int("length", length)
        check_int("seed", seed, 0)
        _check_span(checked, frames, stride)
        check_bool("mirror", mirror)
        check_choice("order", order, ORDERS)
        H, W = check_sizes("size", size, 2)
        self.checked, self.length, self.seed = checked, length, seed
        self.frames, self.stride, self.frame_shape = frames, stride, (3, H, W)
        self.crop_sides = check_sizes("crop_sides", crop_sides)
        if max(self.crop_sides) > SHORT_SIDE:
            raise ValueError(f"crop_sides: expected at most {SHORT_SIDE}, got {tuple(crop_sides)}")
        self.mirror, self.order = mirror, order
        self.classes = checked.videos.classes

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = self.place(index)
        return in_order(self.cut(place), self.order, place.generator), self.checked.videos.labels[place.video]

    def place(self, index: int) -> Place:
        """Where clip number `index` is cut out."""
        index = self.checked_index(index)
        count = len(self.checked.videos)
        visit, turn = divmod(index, count)
        # A seed that no clip has: numbers of clips are not negative.
        video = int(torch.randperm(count, generator=generator_of(self.seed, -1 - visit))[turn])
        info, generator = self.checked.infos[video], generator_of(self.seed, index)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        span = (self.frames - 1) * self.stride + 1
        start = draw(info.frames - span + 1)
        side = scaled_side(self.crop_sides[draw(len(self.crop_sides))], info)
        top, left = draw(info.height - side + 1), draw(info.width - side + 1)
        mirrored = self.mirror and draw(2) == 1
        return Place(video, range(start, start + span, self.stride), side, top, left, mirrored, generator)

    def cut(self, place: Place) -> Tensor:
        """The frames there, in order, (T,3,H,W)."""
        clip = read_frames(self.checked.videos.files[place.video], place.numbers)
        clip = resized(place.crop(clip).float() / 255, self.frame_shape[1:]).clamp_(0, 1)
        return clip.flip(-1) if place.mirrored else clip


class TestClips(LabelledClips):
    """Clips to test on: of each video some at equal distances, of each the middle, or the four corners and
    the middle, each as it is and mirrored. A video's scores are averaged over them (Simonyan and Zisserman
    2014).

    Item i is (clips,T,3,H,W) of video i, float32 in 0..1, and its label.

    Args:
        checked, frames, size, stride, order: as in `VideoClips`.
        clips: of each video; 25 in the papers.
        ten_crops: all ten, else the middle alone.
        crop_side: of the square, where the short side of a frame has 256.
    """

    __test__ = False  # for pytest this is no test

    def __init__(
        self,
        checked: CheckedVideos,
        *,
        frames: int = 10,
        size: Sequence[int] = (224, 224),
        stride: int = 1,
        clips: int = 25,
        ten_crops: bool = True,
        crop_side: int = 224,
        order: str = "forward",
    ) -> None:
        _check_span(checked, frames, stride)
        check_int("clips", clips)
        check_bool("ten_crops", ten_crops)
        check_int("crop_side", crop_side, 1, SHORT_SIDE)
        check_choice("order", order, ORDERS)
        H, W = check_sizes("size", size, 2)
        self.checked, self.clips, self.ten_crops, self.order = checked, clips, ten_crops, order
        self.frames, self.stride, self.frame_shape, self.crop_side = frames, stride, (3, H, W), crop_side
        self.classes, self.length = checked.videos.classes, len(checked.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = self.checked_index(index)
        info, file = self.checked.infos[index], self.checked.videos.files[index]
        span = (self.frames - 1) * self.stride + 1
        starts = equally_spaced(info.frames - span, self.clips)
        numbers = [start + t * self.stride for start in starts for t in range(self.frames)]
        decoded = read_frames(file, numbers)
        side = scaled_side(self.crop_side, info)
        down, across = info.height - side, info.width - side
        places = [(down // 2, across // 2)]
        if self.ten_crops:
            places += [(0, 0), (0, across), (down, 0), (down, across)]
        generator = generator_of(0, index)
        found = []
        for top, left in places:
            crop = decoded[..., top : top + side, left : left + side].float() / 255
            crop = resized(crop, self.frame_shape[1:]).clamp_(0, 1)
            for clip in crop.split(self.frames):
                clip = in_order(clip, self.order, generator)
                found += [clip, clip.flip(-1)] if self.ten_crops else [clip]
        return torch.stack(found), self.checked.videos.labels[index]


def equally_spaced(last: int, count: int) -> tuple[int, ...]:
    """`count` numbers from 0 to `last`; of one the middle."""
    return tuple(round(last * i / (count - 1)) if count > 1 else last // 2 for i in range(count))


def scaled_side(side: int, info: VideoInfo) -> int:
    """The side of a square in the pixels of a video, given where its short side has SHORT_SIDE."""
    return max(1, side * min(info.height, info.width) // SHORT_SIDE)


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """(T,C,h,w) -> (T,C,H,W), bilinear, smoothed where it shrinks."""
    return F.interpolate(images, tuple(size), mode="bilinear", antialias=True, align_corners=False)


def in_order(clip: Tensor, order: str, generator: torch.Generator) -> Tensor:
    """The frames of a clip (T,...) in an order of `ORDERS`."""
    if order == "reversed":
        return clip.flip(0)
    return clip[shuffle(len(clip), generator)] if order == "shuffled" else clip


def _check_span(checked: CheckedVideos, frames: int, stride: int) -> None:
    check_int("frames", frames)
    check_int("stride", stride)
    span = (frames - 1) * stride + 1
    for file, info in zip(checked.videos.files, checked.infos, strict=True):
        if info.frames < span:
            raise ValueError(f"{file}: expected at least {span} frames, got {info.frames}")
