"""Single frame, early, late and slow fusion: Karpathy et al., "Large-scale Video Classification with
Convolutional Neural Networks", 2014."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from convgru_fused.checks import check_frame_shape, check_int

from .backbones import output_features
from .scores import initialize_for_relu
from .trunk import PUBLISHED, SMALL, Trunk
from .windows import FrameStack, WindowModel

FRAME_SHAPE = (3, 170, 170)  # our choice

Model = TypeVar("Model", bound="_Small")


class _Small(WindowModel):
    """What the four share: how the small ones are made."""

    @classmethod
    def small(
        cls: type[Model],
        num_classes: int,
        frame_shape: Sequence[int] = (1, 32, 32),
        *,
        width: float = 1.0,
        **options: Any,
    ) -> Model:
        """The same with narrow layers, no stride in the first and no normalisation, for tests and training on
        a CPU. All layers have `width` times as many channels; `options` go to the constructor."""
        return cls(num_classes, **{"frame_shape": frame_shape, "trunk": SMALL.scaled(width), **options})


class SingleFrame(FrameStack, _Small):
    """Every frame classified alone, and the mean of the frames' probabilities: blind to motion and order.

    forward: a clip (N,T,C,H,W) -> log-probabilities (N,num_classes).

    Args:
        num_classes: how many classes.
        frame_shape: (C,H,W) of a frame.
        trunk: sizes of the network, as published by default.
        network: another network to use instead: images (M,C,H,W) -> logits (M,num_classes), such as
            `convgru_fused.models.FrameClassifier` or a classifier of torchvision's.
        average: of the frames; as in `WindowModel`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = FRAME_SHAPE,
        trunk: Trunk = PUBLISHED,
        network: nn.Module | None = None,
        average: str = "probabilities",
    ) -> None:
        shape = _check(num_classes, frame_shape, trunk)
        if network is None:
            network = trunk.network(shape, num_classes)
        super().__init__(num_classes, network, shape, frames=1, average=average)


class EarlyFusion(FrameStack, _Small):
    """The network's first convolution extended over all frames of a window.

    forward: a clip (N,T,C,H,W), T at least `frames` -> log-probabilities (N,num_classes), the mean over the
    windows of a longer clip (`WindowModel`).

    Args:
        num_classes, frame_shape, trunk: as in `SingleFrame`.
        frames: of a window.
        stride: frames from the start of a window to that of the next; None is `frames`.
        average: as in `WindowModel`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = FRAME_SHAPE,
        frames: int = 10,
        stride: int | None = None,
        average: str = "probabilities",
        trunk: Trunk = PUBLISHED,
    ) -> None:
        C, H, W = _check(num_classes, frame_shape, trunk)
        check_int("frames", frames)
        network = trunk.network((frames * C, H, W), num_classes)
        super().__init__(num_classes, network, (C, H, W), frames, stride, average)


class LateFusion(_Small):
    """Two towers with the same weights on a window's first and last frame, joined by the first dense layer.

    forward: a clip (N,T,C,H,W), T at least `distance` + 1 -> log-probabilities (N,num_classes), the mean over
    the windows of a longer clip (`WindowModel`).

    Args:
        num_classes, frame_shape, trunk: as in `SingleFrame`.
        distance: frames from the one to the other.
        stride: frames from the start of a window to that of the next; None is `distance` + 1.
        average: as in `WindowModel`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = FRAME_SHAPE,
        distance: int = 15,
        stride: int | None = None,
        average: str = "probabilities",
        trunk: Trunk = PUBLISHED,
    ) -> None:
        shape = _check(num_classes, frame_shape, trunk)
        check_int("distance", distance)
        super().__init__(num_classes, shape, distance + 1, stride, average)
        self.features = trunk.convolutions(shape[0])
        self.classifier = trunk.classifier(2 * output_features(self.features, shape), num_classes)
        initialize_for_relu(self)

    def logits(self, windows: Tensor) -> Tensor:
        pair = windows[:, :: self.frames - 1]  # (M,2,C,H,W)
        return self.classifier(self.features(pair.flatten(0, 1)).unflatten(0, pair.shape[:2]).flatten(1))


class SlowFusion(_Small):
    """The first three convolutions extended over time: over 4 frames with a stride of 2, and over 2 with a
    stride of 2 twice, so that the third sees all 10.

    forward: a clip (N,T,C,H,W), T at least 10 -> log-probabilities (N,num_classes), the mean over the windows
    of a longer clip (`WindowModel`).

    Args:
        num_classes, frame_shape, trunk: as in `SingleFrame`.
        stride: frames from the start of a window to that of the next; None is 10.
        average: as in `WindowModel`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    FRAMES = 10
    TIMES = ((4, 2), (2, 2), (2, 2))  # extent and stride of the first convolutions

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = FRAME_SHAPE,
        stride: int | None = None,
        average: str = "probabilities",
        trunk: Trunk = PUBLISHED,
    ) -> None:
        C, H, W = _check(num_classes, frame_shape, trunk)
        super().__init__(num_classes, (C, H, W), self.FRAMES, stride, average)
        self.features = trunk.convolutions_over_time(C, self.TIMES)
        features = output_features(self.features, (C, self.FRAMES, H, W))
        self.classifier = trunk.classifier(features, num_classes)
        initialize_for_relu(self)

    def logits(self, windows: Tensor) -> Tensor:
        return self.classifier(self.features(windows.transpose(1, 2)).flatten(1))


def _check(num_classes: object, frame_shape: object, trunk: object) -> tuple[int, int, int]:
    check_int("num_classes", num_classes)
    if not isinstance(trunk, Trunk):
        raise TypeError(f"trunk: expected a Trunk, got {type(trunk).__name__}")
    return check_frame_shape(frame_shape)
