"""Networks of a fixed temporal extent, which read a longer clip window by window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convgru_fused.checks import check_choice, check_clip, check_frame_shape, check_int, check_module

from .scores import AVERAGES, average_scores, check_logits


class WindowModel(nn.Module):
    """A classifier of `frames` consecutive frames; a clip's score is the mean over its windows.

    forward: a clip (N,T,C,H,W), T at least `frames` -> log-probabilities (N,num_classes). Windows start every
    `stride` frames; a last one is aligned with the clip's end, so that no frame is left out. What is farther
    apart than a window is never seen together.

    average: of what of the windows it is the mean: "probabilities" (their logarithm), or "log_probabilities",
    whose negative is the mean of the windows' own losses: networks that read windows are published as trained
    on one at a time.

    A subclass has `logits`: windows (M,frames,C,H,W) -> (M,num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        frame_shape: Sequence[int],
        frames: int,
        stride: int | None = None,
        average: str = "probabilities",
    ) -> None:
        super().__init__()
        check_int("num_classes", num_classes)
        check_int("frames", frames)
        if stride is not None:
            check_int("stride", stride)
        self.num_classes = num_classes
        self.average = check_choice("average", average, AVERAGES)
        self.frame_shape = check_frame_shape(frame_shape)
        self.frames = frames
        self.stride = frames if stride is None else stride

    def windows(self, clip: Tensor) -> Tensor:
        """(N,T,C,H,W) -> (N,B,frames,C,H,W), B windows."""
        check_clip("clip", clip, self.frame_shape, self.frames)
        last = clip.size(1) - self.frames
        starts = list(range(0, last + 1, self.stride))
        if starts[-1] != last:
            starts.append(last)
        if len(starts) == 1:
            return clip.unsqueeze(1)
        return torch.stack([clip[:, start : start + self.frames] for start in starts], dim=1)

    def logits(self, windows: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, clip: Tensor) -> Tensor:
        windows = self.windows(clip)
        N, B = windows.shape[:2]
        scores = check_logits("network", self.logits(windows.flatten(0, 1)), (N * B, self.num_classes))
        return average_scores(scores.unflatten(0, (N, B)), 1, self.average)


class FrameStack(WindowModel):
    """A network for images that reads all frames of a window as channels of one image.

    Args:
        num_classes: how many classes.
        network: images (M,frames*C,H,W), first frame's channels first -> logits (M,num_classes).
        frame_shape: (C,H,W) of a frame.
        frames: how many are read together.
        stride: frames from the start of a window to that of the next; None is `frames`.
        average: as in `WindowModel`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        network: nn.Module,
        frame_shape: Sequence[int],
        frames: int,
        stride: int | None = None,
        average: str = "probabilities",
    ) -> None:
        super().__init__(num_classes, frame_shape, frames, stride, average)
        check_module("network", network)
        self.network = network

    def logits(self, windows: Tensor) -> Tensor:
        return self.network(windows.flatten(1, 2))
