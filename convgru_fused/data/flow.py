"""Optical flow by OpenCV (the extra "video"), kept on disk in eight bits."""

from __future__ import annotations

import hashlib
import importlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from convgru_fused.checks import check_choice, check_int
from convgru_fused.files import replace_file

from .decoding import read_frames
from .video_clips import CheckedVideos, VideoClips, resized

METHODS = ("dis", "tvl1")


def optical_flow(frames: Tensor, method: str = "dis") -> Tensor:
    """How the pixels of each frame move to the next.

    Args:
        frames: (T,3,H,W) bytes, red, green and blue; T at least 2.
        method: "dis" (Kroeger et al. 2016, OpenCV's medium preset), quick; or "tvl1" (Zach et al. 2007), a
            hundred times slower and more exact.

    Returns:
        (T-1,2,H,W) float32: dx to the right and dy down, in pixels.

    Raises TypeError or ValueError naming the argument.
    """
    # Here and not above: the package works without it. Not an import, for its types are incomplete.
    cv2: Any = importlib.import_module("cv2")
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        raise TypeError(f"frames: expected a Tensor of bytes, got {getattr(frames, 'dtype', type(frames))}")
    if frames.dim() != 4 or frames.size(1) != 3 or frames.size(0) < 2:
        raise ValueError(f"frames: expected (T,3,H,W) of at least 2 frames, got {tuple(frames.shape)}")
    check_choice("method", method, METHODS)
    if method == "dis":
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    else:
        flow = cv2.optflow.DualTVL1OpticalFlow_create()
    grey = [cv2.cvtColor(frame.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for frame in frames]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its threads do not survive the fork of a loader's workers
    try:
        fields = [flow.calc(a, b, None) for a, b in zip(grey, grey[1:], strict=False)]
    finally:
        cv2.setNumThreads(threads)
    return torch.stack([torch.from_numpy(field).permute(2, 0, 1) for field in fields]).float()


def to_bytes(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Fields (T,2,H,W) as bytes, each scaled linearly from its own range to 0..255 (Simonyan and Zisserman
    2014, section 5), and these ranges (T,2), lowest and highest."""
    low, high = flow.amin((1, 2, 3)), flow.amax((1, 2, 3))
    scale = (high - low).clamp(min=torch.finfo(torch.float32).tiny) / 255
    quantised = ((flow - low.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)).round().to(torch.uint8)
    return quantised, torch.stack((low, high), 1)


def from_bytes(quantised: Tensor, ranges: Tensor) -> Tensor:
    """The inverse of `to_bytes`, to within half a step: a 510th of each field's range."""
    low, high = (side.view(-1, 1, 1, 1) for side in ranges.unbind(1))
    return low + quantised.float() * ((high - low) / 255)


class WithFlow(Dataset[tuple[tuple[Tensor, Tensor], int]]):
    """Clips with the flow between their frames, computed from what is shown: after cutting, in their order.

    Item i is ((...,T,C,H,W), (...,T-1,2,H,W)) and the label; C is 1 or 3.

    Args:
        clips: a dataset of clips (...,T,C,H,W), floats in 0..1, and labels.
        method: as in `optical_flow`.
    """

    def __init__(self, clips: Dataset[tuple[Tensor, int]], method: str = "dis") -> None:
        check_choice("method", method, METHODS)
        self.clips, self.method = clips, method

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        clip, label = self.clips[index]
        T, _, H, W = clip.shape[-4:]
        frames = (clip * 255).round().to(torch.uint8).expand(*clip.shape[:-3], 3, H, W)
        fields = [optical_flow(frames, self.method) for frames in frames.reshape(-1, T, 3, H, W)]
        return (clip, torch.stack(fields).view(*clip.shape[:-4], T - 1, 2, H, W)), label


class FlowCache:
    """The flow of whole videos, computed once and kept in eight bits.

    Args:
        folder: for the files; made if it is not there.
        method: as in `optical_flow`.
    """

    def __init__(self, folder: Path | str, method: str = "dis") -> None:
        check_choice("method", method, METHODS)
        self.folder, self.method = Path(folder), method

    def file_of(self, video: Path) -> Path:
        """Where the flow of a video is kept: another place when the video has changed."""
        status = video.stat()
        what = f"{video.resolve()},{status.st_size},{status.st_mtime_ns},{self.method}"
        return self.folder / f"{video.stem}-{hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}.npz"

    def flow(self, video: Path, frames: int, numbers: Sequence[int]) -> Tensor:
        """Fields (len(numbers),2,H,W) from the frames of these numbers to the next ones.

        frames: that the video has. Raises ValueError naming the file if it cannot be decoded.
        """
        import numpy as np

        kept = self.file_of(video)
        try:
            with np.load(kept) as arrays:
                quantised, ranges = arrays["flow"], arrays["ranges"]
        except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # or cut off
            pair = to_bytes(optical_flow(read_frames(video, range(frames)), self.method))
            quantised, ranges = (tensor.numpy() for tensor in pair)
            self.folder.mkdir(parents=True, exist_ok=True)

            def write(part: Path) -> None:
                with part.open("wb") as file:
                    np.savez_compressed(file, flow=quantised, ranges=ranges)

            replace_file(kept, write)
        chosen = list(numbers)
        return from_bytes(torch.from_numpy(quantised[chosen]), torch.from_numpy(ranges[chosen]))


class FlowClips(VideoClips):
    """As `VideoClips`, with the flow of the clip's frames beside them.

    Item i is ((T,3,H,W), (T-1,2,H,W)) and its label: frames in 0..1; flow in pixels of the resized frames, so
    vectors are scaled with them and dx changes its sign in a mirror.

    Args:
        cache: where the flow comes from.
        others as in `VideoClips`; stride is 1, and order "forward".
    """

    def __init__(
        self, checked: CheckedVideos, length: int, cache: FlowCache, seed: int = 0, **options: object
    ) -> None:
        for name, only in (("stride", 1), ("order", "forward")):
            if options.get(name, only) != only:
                raise ValueError(f"{name}: expected {only!r} where there is flow, got {options[name]!r}")
        super().__init__(checked, length, seed, **options)  # type: ignore[arg-type]
        check_int("frames", self.frames, 2)
        self.cache = cache

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:  # type: ignore[override]
        place = self.place(index)
        clip = self.cut(place)
        file, info = self.checked.videos.files[place.video], self.checked.infos[place.video]
        flow = self.cache.flow(file, info.frames, place.numbers[:-1])
        flow = place.crop(flow)
        H, W = self.frame_shape[1:]
        scale = torch.tensor([W / flow.size(-1), H / flow.size(-2)]).view(2, 1, 1)
        flow = resized(flow, (H, W)) * scale
        if place.mirrored:
            flow = flow.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        return (clip, flow), self.checked.videos.labels[place.video]
