"""Two-stream networks: Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in
Videos", 2014 (arXiv 1406.2199)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convgru_fused.checks import (
    check_choice,
    check_clip,
    check_frame_shape,
    check_int,
    check_module,
    check_number,
)

from .backbones import FrameClassifier, output_features
from .scores import AVERAGES, average_scores, dense_layers, initialize_for_relu
from .vgg import small_vgg
from .windows import FrameStack

FLOW_FRAMES = 10  # L


def cnn_m(
    frame_shape: Sequence[int], num_classes: int, second_norm: bool = True, dropout: float = 0.9
) -> nn.Sequential:
    """The frame CNN of both streams, images (M,C,H,W) -> logits: a 7x7 convolution of 96 channels with stride
    2, normalised and pooled, and four more. All sizes after the first pool are our choice.

    Args:
        frame_shape: (C,H,W) of an image.
        num_classes: how many classes.
        second_norm: whether the second convolution is normalised; the temporal stream does without.
        dropout: after each dense layer.

    Raises ValueError for images that are too small.
    """
    C, H, W = frame_shape

    def norm() -> nn.Module:  # torch divides alpha by the size
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    layers: list[nn.Module] = [nn.Conv2d(C, 96, 7, 2), nn.ReLU(inplace=True), norm(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(96, 256, 5, 2, padding=1), nn.ReLU(inplace=True)]
    layers += [norm()] if second_norm else []
    layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    for channels in (256, 512, 512):
        layers += [nn.Conv2d(channels, 512, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2))
    features = nn.Sequential(*layers)
    dense = dense_layers(output_features(features, (C, H, W)), (4096, 2048), num_classes, dropout)
    network = nn.Sequential(features, nn.Flatten(), dense)
    initialize_for_relu(network)
    return network


class FlowStack(FrameStack):
    """The temporal stream: L fields of optical flow as 2L channels dx, dy, dx, dy, ... of one image, each
    field's mean subtracted (it is mostly the camera's motion).

    forward: flow (N,T,2,H,W), T at least `frames` -> log-probabilities (N,num_classes), the mean over the
    windows of more fields (`WindowModel`).

    Args:
        num_classes, network, frame_shape, frames, stride, average: as in `FrameStack`; frame_shape is
            (2,H,W).
        subtract_mean: whether each field's mean vector is subtracted.
    """

    def __init__(
        self,
        num_classes: int,
        network: nn.Module,
        frame_shape: Sequence[int],
        frames: int = FLOW_FRAMES,
        stride: int | None = None,
        subtract_mean: bool = True,
        average: str = "probabilities",
    ) -> None:
        super().__init__(num_classes, network, frame_shape, frames, stride, average)
        if self.frame_shape[0] != 2:
            raise ValueError(f"frame_shape: expected (2,H,W) of flow, got {self.frame_shape}")
        self.subtract_mean = bool(subtract_mean)

    def logits(self, windows: Tensor) -> Tensor:
        if self.subtract_mean:
            windows = windows - windows.mean((-2, -1), keepdim=True)
        return super().logits(windows)


class TwoStream(nn.Module):
    """A network on frames and one on stacks of optical flow, their probabilities averaged.

    forward: a clip (N,T,C,H,W) and its flow (N,T',2,H,W), T' at least L -> log-probabilities (N,num_classes);
    `stream_scores` gives each stream's, which `convgru_fused.models.SVMFusion` joins too. The streams are
    trained apart in the paper: they are the modules `spatial` and `temporal`.

    As published by default: frames of 224x224, L = 10 fields of flow (but see `cnn_m`).

    Args:
        num_classes: how many classes.
        frame_shape: (C,H,W) of a frame.
        flow_frames: L.
        flow_stride: fields from the start of a stack to that of the next; None is `flow_frames`.
        spatial: another model to use instead, clip -> log-probabilities, such as a `GRURCN`.
        temporal: another model to use instead, flow -> log-probabilities.
        flow_weight: weight of the temporal stream in the average, 0 to 1; the other stream has the rest.
        average: of the streams and, where they are not given, of their windows; as in `WindowModel`.
        dropout: of both networks.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frame_shape: Sequence[int] = (3, 224, 224),
        flow_frames: int = FLOW_FRAMES,
        flow_stride: int | None = None,
        spatial: nn.Module | None = None,
        temporal: nn.Module | None = None,
        flow_weight: float = 0.5,
        average: str = "probabilities",
        dropout: float = 0.9,
    ) -> None:
        super().__init__()
        check_int("num_classes", num_classes)
        check_int("flow_frames", flow_frames)
        _check_stride(flow_stride)
        check_number("flow_weight", flow_weight, 0, 1)
        check_number("dropout", dropout, 0, 1)
        C, H, W = check_frame_shape(frame_shape)
        if spatial is None:
            network = cnn_m((C, H, W), num_classes, dropout=dropout)
            spatial = FrameStack(num_classes, network, (C, H, W), frames=1, average=average)
        if temporal is None:
            network = cnn_m((2 * flow_frames, H, W), num_classes, second_norm=False, dropout=dropout)
            temporal = FlowStack(num_classes, network, (2, H, W), flow_frames, flow_stride, average=average)
        check_module("spatial", spatial)
        check_module("temporal", temporal)
        self.num_classes = num_classes
        self.frame_shape = (C, H, W)
        self.spatial = spatial
        self.temporal = temporal
        self.flow_weight = float(flow_weight)
        self.average = check_choice("average", average, AVERAGES)

    def stream_scores(self, clip: Tensor, flow: Tensor) -> Tensor:
        """Log-probabilities of the spatial and of the temporal stream: (N,2,num_classes)."""
        check_clip("clip", clip, self.frame_shape)
        check_clip("flow", flow, (2, *self.frame_shape[1:]))
        if len(clip) != len(flow):
            raise ValueError(f"flow: expected N={len(clip)} as the clip has, got {len(flow)}")
        return torch.stack([self.spatial(clip), self.temporal(flow)], dim=1)

    def forward(self, clip: Tensor, flow: Tensor) -> Tensor:
        weights = (1 - self.flow_weight, self.flow_weight)
        return average_scores(self.stream_scores(clip, flow), 1, self.average, weights)

    @classmethod
    def small(
        cls,
        num_classes: int,
        frame_shape: Sequence[int] = (1, 32, 32),
        *,
        width: float = 1.0,
        subtract_mean: bool = True,
        flow_stride: int | None = None,
        average: str = "probabilities",
        **options: Any,
    ) -> TwoStream:
        """Narrow VGGs as both streams, for tests and training on a CPU. All layers have `width` times as many
        channels; `subtract_mean` is `FlowStack`'s; the others go to the constructor."""
        C, H, W = check_frame_shape(frame_shape)
        fields = options.setdefault("flow_frames", 9)  # of 10 frames
        check_int("flow_frames", fields)
        _check_stride(flow_stride)

        def network(channels: int) -> FrameClassifier:
            vgg = small_vgg(channels, ("fc7",), width)
            return FrameClassifier(vgg, num_classes, (channels, H, W), dropout=0.0)

        streams = {
            "spatial": FrameStack(num_classes, network(C), (C, H, W), frames=1, average=average),
            "temporal": FlowStack(
                num_classes,
                network(2 * fields),
                (2, H, W),
                fields,
                flow_stride,
                subtract_mean=subtract_mean,
                average=average,
            ),
        }
        return cls(num_classes, frame_shape=(C, H, W), average=average, **{**streams, **options})


def _check_stride(flow_stride: object) -> None:
    if flow_stride is not None:
        check_int("flow_stride", flow_stride)
