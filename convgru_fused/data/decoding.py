"""Video files, decoded with PyAV (the extra "video")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VideoInfo:
    """What a video file is like."""

    frames: int  # that decode
    width: int
    height: int
    rate: float | None  # frames a second, if the file says so


def probe(path: Path) -> VideoInfo:
    """Decodes a whole file: headers lie, and files are cut off.

    Raises ValueError naming the file and the reason if it cannot be decoded or has no frame.
    """
    with _stream(path) as stream:
        frames, width, height = 0, 0, 0
        for frame in stream.container.decode(stream):
            frames, width, height = frames + 1, frame.width, frame.height
        rate = stream.average_rate
    if frames == 0:
        raise ValueError(f"{path}: expected a video with frames, got none that decodes")
    return VideoInfo(frames, width, height, float(rate) if rate else None)


def read_frames(path: Path, indices: Sequence[int]) -> Tensor:
    """The frames of these numbers, (len(indices),3,H,W) bytes, red, green and blue.

    Raises ValueError naming the file and the reason if it cannot be decoded or ends before one of them.
    """
    wanted, found = set(indices), {}
    with _stream(path) as stream:
        for index, frame in zip(range(max(wanted) + 1), stream.container.decode(stream), strict=False):
            if index in wanted:
                found[index] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    if len(found) < len(wanted):
        last = max(wanted - found.keys())
        raise ValueError(f"{path}: expected a frame number {last}, got {len(found)} of {len(wanted)} frames")
    return torch.stack([found[index] for index in indices])


@contextmanager
def _stream(path: Path) -> Iterator[Any]:
    """The video stream of an open file; what goes wrong meanwhile becomes a ValueError that names it."""
    import av  # here and not above: the package works without the decoder

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise ValueError(f"{path}: expected a video stream, got {kinds}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path}: expected a video that FFmpeg can decode, got: {error.strerror or error}"
        ) from None
