"""The network of Karpathy et al. 2014, which reads single frames, or clips in its first convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from convgru_fused.checks import check_bool, check_int, check_number, check_sizes

from .backbones import output_features
from .scores import dense_layers, initialize_for_relu, scaled


@dataclass(frozen=True)
class Trunk:
    """Sizes of the network that the four models share: five convolutions, the first two normalised and
    pooled, the last pooled, and dense layers. As published by default; dropout 0.5 is our choice.

    Maps keep their size but for strides: convolutions are padded by half their kernel, and a pool's last
    window may be cut off by the border.

    Raises TypeError or ValueError naming the field, what was expected and what came.
    """

    widths: Sequence[int] = (96, 256, 384, 384, 256)
    kernels: Sequence[int] = (11, 5, 3, 3, 3)
    first_stride: int = 3
    dense: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    normalize: bool = True

    def __post_init__(self) -> None:
        check_sizes("widths", self.widths, 5)
        check_sizes("kernels", self.kernels, 5)
        check_int("first_stride", self.first_stride)
        check_sizes("dense", self.dense)
        check_number("dropout", self.dropout, 0, 1)
        check_bool("normalize", self.normalize)

    def scaled(self, width: float) -> Trunk:
        """The same with `width` times as many channels and units."""
        return replace(self, widths=scaled(self.widths, width), dense=scaled(self.dense, width))

    def convolutions(self, in_channels: int) -> nn.Sequential:
        """Images (M,C,H,W) -> (M,256,h,w)."""
        return self._stack(in_channels, None)

    def convolutions_over_time(self, in_channels: int, times: Sequence[tuple[int, int]]) -> nn.Sequential:
        """Clips (M,C,T,H,W) -> (M,256,t,h,w). Each of the first convolutions has an extent and a stride in
        time, without padding; the others see one step."""
        return self._stack(in_channels, times)

    def _stack(self, in_channels: int, times: Sequence[tuple[int, int]] | None) -> nn.Sequential:
        Conv: Any = nn.Conv2d if times is None else nn.Conv3d
        Pool: Any = nn.MaxPool2d if times is None else nn.MaxPool3d
        one = () if times is None else (1,)  # the axis of time, where there is one
        layers: list[nn.Module] = []
        for index, (width, size) in enumerate(zip(self.widths, self.kernels, strict=True)):
            stride, padding = self.first_stride if index == 0 else 1, size // 2
            extents, steps, none = one, one, (0,) * len(one)
            if times is not None and index < len(times):
                extents, steps = ((number,) for number in times[index])
            kernel, strides = (*extents, size, size), (*steps, stride, stride)
            layers += [Conv(in_channels, width, kernel, strides, (*none, padding, padding)), nn.ReLU(True)]
            if index in (0, 1) and self.normalize:  # torch divides alpha by the size
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.5, k=2.0))
            if index in (0, 1, 4):
                layers.append(Pool((*one, 2, 2), ceil_mode=True))
            in_channels = width
        return nn.Sequential(*layers)

    def classifier(self, features: int, num_classes: int) -> nn.Sequential:
        """The dense layers: (M,features) -> logits."""
        return dense_layers(features, self.dense, num_classes, self.dropout)

    def network(self, frame_shape: Sequence[int], num_classes: int) -> nn.Sequential:
        """Images (M,C,H,W) -> logits (M,num_classes)."""
        convolutions = self.convolutions(frame_shape[0])
        features = output_features(convolutions, frame_shape)
        network = nn.Sequential(convolutions, nn.Flatten(), self.classifier(features, num_classes))
        initialize_for_relu(network)
        return network


PUBLISHED = Trunk()
# On a CPU the normalisation takes twice as long as all the rest of so small a network.
SMALL = Trunk((16, 32, 32, 32, 32), (5, 3, 3, 3, 3), 1, (64,), 0.0, normalize=False)
