"""What can be trained and on what, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from convgru_fused.data import EventOrder, GeneratedTask, LimitedLifetimeDots, PathTracker
from convgru_fused.models import (
    C3D,
    GRURCN,
    LRCN,
    ConvLSTM,
    EarlyFusion,
    LateFusion,
    SingleFrame,
    SlowFusion,
)
from convgru_fused.models.vgg import small_vgg

TASKS: dict[str, Callable[..., GeneratedTask]] = {
    "dots": LimitedLifetimeDots,
    "events": EventOrder,
    "paths": PathTracker,
}

# Where frames have 32x32 pixels, pool1 has what the paper's pool2 has of 224x224: places.
_PYRAMID = ("pool1", "pool2", "pool3", "pool4", "fc7")


def _pyramid(kind: Any) -> Callable[..., nn.Module]:
    def build(num_classes: int, frame_shape: tuple[int, int, int], **options: Any) -> nn.Module:
        options.setdefault("backbone", small_vgg(frame_shape[0], _PYRAMID))
        return kind.small(num_classes, frame_shape, **options)

    return build


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "single_frame": SingleFrame.small,
    "early_fusion": EarlyFusion.small,
    "late_fusion": LateFusion.small,
    "slow_fusion": SlowFusion.small,
    "c3d": C3D.small,
    "lrcn": LRCN.small,
    "convlstm": _pyramid(ConvLSTM),
    "grurcn": _pyramid(GRURCN),
}
