"""What GRURCN and ConvLSTM share: a recurrence and a classifier on each map of a frame CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused.checks import (
    check_choice,
    check_clip,
    check_frame_shape,
    check_int,
    check_number,
    check_sizes,
)

from .backbones import adopt
from .scores import AVERAGES, PooledClassifier, average_scores, scaled
from .vgg import PYRAMID, small_vgg

HIDDEN_SIZES = (64, 128, 256, 256, 512)
SMALL_HIDDEN_SIZES = (8, 16, 32, 32, 32)

Model = TypeVar("Model", bound="RecurrentPyramid")


class RecurrentPyramid(nn.Module):
    """A frame CNN with maps of several layers, on each a convolutional recurrence over the frames and, on
    that one's last state, a classifier; the mean of the classifiers' probabilities is the result.

    forward: a clip (N,T,C,H,W) -> log-probabilities (N,num_classes). Any T will do.

    A subclass has `last_states`: maps (N,T,C_l,H_l,W_l) of every layer -> states (N,D*K_l,H_l,W_l).

    Args:
        num_classes: how many classes.
        backbone: the frame CNN.
        frame_shape: (C,H,W) of a frame.
        hidden_sizes: K of each of the backbone's maps.
        kernel_size: odd; 1 on maps of one pixel, where the other taps would only meet padding.
        dropout: on the input of every classifier.
        average: of what of the classifiers forward gives the mean: "probabilities" (their logarithm), or
            "log_probabilities", whose negative is the mean of the classifiers' own losses, so that each is
            trained as if it were alone.
        D: states a layer hands to its classifier.
        make_layer: (C_l, K_l, kernel size) -> the recurrence.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        frame_shape: Sequence[int],
        hidden_sizes: Sequence[int],
        kernel_size: int,
        dropout: float,
        average: str,
        D: int,
        make_layer: Callable[[int, int, int], nn.Module],
    ) -> None:
        super().__init__()
        check_int("num_classes", num_classes)
        check_int("kernel_size", kernel_size)
        check_number("dropout", dropout, 0, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd size, got {kernel_size}")
        self.num_classes = num_classes
        self.average = check_choice("average", average, AVERAGES)
        self.frame_shape = check_frame_shape(frame_shape)
        self.map_shapes = adopt(backbone, self.frame_shape)
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes, len(self.map_shapes))
        self.backbone = backbone
        shapes = self.map_shapes.values()
        self.kernel_sizes = tuple(1 if (H, W) == (1, 1) else kernel_size for _, H, W in shapes)
        self.recurrences = nn.ModuleList(
            make_layer(C, K, kernel)
            for (C, _, _), K, kernel in zip(shapes, self.hidden_sizes, self.kernel_sizes, strict=True)
        )
        self.classifiers = nn.ModuleList(
            PooledClassifier(D * K, num_classes, dropout) for K in self.hidden_sizes
        )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the maps, in the order of `layer_scores`."""
        return tuple(self.map_shapes)

    def maps(self, clip: Tensor) -> list[Tensor]:
        """(N,T,C,H,W) -> each map of all frames, (N,T,C_l,H_l,W_l)."""
        check_clip("clip", clip, self.frame_shape)
        maps = self.backbone(clip.flatten(0, 1))
        return [maps[name].unflatten(0, clip.shape[:2]) for name in self.layer_names]

    def last_states(self, maps: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def layer_scores(self, clip: Tensor) -> Tensor:
        """Each layer's log-probabilities: (N,T,C,H,W) -> (N,L,num_classes), L layers as in `layer_names`."""
        states = self.last_states(self.maps(clip))
        logits = [classify(state) for classify, state in zip(self.classifiers, states, strict=True)]
        return F.log_softmax(torch.stack(logits, dim=1), dim=-1)

    def forward(self, clip: Tensor) -> Tensor:
        return self.combined(self.layer_scores(clip))

    def combined(self, layer_scores: Tensor) -> Tensor:
        """What forward makes of the layers' scores: (N,L,num_classes) -> (N,num_classes)."""
        return average_scores(layer_scores, 1, self.average)

    @classmethod
    def small(
        cls: type[Model],
        num_classes: int,
        frame_shape: Sequence[int] = (1, 32, 32),
        *,
        layers: Sequence[str] = PYRAMID,
        width: float = 1.0,
        **options: Any,
    ) -> Model:
        """The same on maps of a narrow VGG, named in `layers`, for tests and training on a CPU. All layers
        have `width` times as many channels; `options` go to the constructor."""
        shape = check_frame_shape(frame_shape)
        if "backbone" not in options:
            options["backbone"] = small_vgg(shape[0], layers, width)
        hidden = scaled(SMALL_HIDDEN_SIZES, width)
        defaults: dict[str, Any] = dict(hidden_sizes=hidden, dropout=0.0, frame_shape=shape)
        return cls(num_classes, **{**defaults, **options})
