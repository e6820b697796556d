"""C3D: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", 2015
(arXiv 1412.0767)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused.checks import check_blocks, check_number, check_sizes

from .backbones import output_features
from .scores import dense_layers, initialize_for_relu, scaled
from .windows import WindowModel

BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class _Pool(nn.Module):
    """Maximum over `time` steps and 2x2 pixels; fewer steps where there are no more, and a border around maps
    of odd size, as C3D's last pool has around 7x7."""

    def __init__(self, time: int) -> None:
        super().__init__()
        self.time = time

    def forward(self, x: Tensor) -> Tensor:
        time = min(self.time, x.size(2))
        border = (0, x.size(3) % 2, x.size(4) % 2)
        return F.max_pool3d(x, (time, 2, 2), padding=border)

    def extra_repr(self) -> str:
        return f"time={self.time}"


class C3D(WindowModel):
    """Eight 3x3x3 convolutions with five pools, the first of which leaves the time, and dense layers.

    forward: a clip (N,T,C,H,W), T at least `frames` -> log-probabilities (N,num_classes), the mean over the
    windows of a longer clip (`WindowModel`).

    As published by default, for windows of 16 frames of 112x112.

    Args:
        num_classes: how many classes.
        frame_shape: (C,H,W) of a frame.
        frames: of a window.
        stride: frames from the start of a window to that of the next; None is `frames`.
        average: as in `WindowModel`.
        blocks: for each block, between pools, the channels of its convolutions.
        dense: widths of the dense layers.
        dropout: after each dense layer. 0.5 is our choice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = (3, 112, 112),
        frames: int = 16,
        stride: int | None = None,
        average: str = "probabilities",
        blocks: Sequence[Sequence[int]] = BLOCKS,
        dense: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, frame_shape, frames, stride, average)
        check_number("dropout", dropout, 0, 1)
        layers: list[nn.Module] = []
        channels = self.frame_shape[0]
        for index, block in enumerate(check_blocks(blocks)):
            for size in block:
                layers += [nn.Conv3d(channels, size, 3, padding=1), nn.ReLU(inplace=True)]
                channels = size
            layers.append(_Pool(1 if index == 0 else 2))
        self.features = nn.Sequential(*layers)
        self.classifier = dense_layers(
            output_features(self.features, (self.frame_shape[0], frames, *self.frame_shape[1:])),
            check_sizes("dense", dense),
            num_classes,
            dropout,
        )
        initialize_for_relu(self)

    def logits(self, windows: Tensor) -> Tensor:
        return self.classifier(self.features(windows.transpose(1, 2)).flatten(1))

    @classmethod
    def small(
        cls,
        num_classes: int,
        frame_shape: Sequence[int] = (1, 32, 32),
        *,
        width: float = 1.0,
        **options: Any,
    ) -> C3D:
        """One narrow convolution a block, for tests and training on a CPU. All layers have `width` times as
        many channels; `options` go to C3D."""
        blocks = [scaled(block, width) for block in ((8,), (16,), (32,), (32,))]
        dense = scaled((64,), width)
        defaults: dict[str, Any] = dict(frames=10, blocks=blocks, dense=dense, dropout=0.0)
        return cls(num_classes, frame_shape=frame_shape, **{**defaults, **options})
