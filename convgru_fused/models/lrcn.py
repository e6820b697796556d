"""LRCN: Donahue et al., "Long-term Recurrent Convolutional Networks", 2015 (arXiv 1411.4389); and the "VGG-16
RNN" of Ballas et al. 2016."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused.checks import (
    check_choice,
    check_clip,
    check_frame_shape,
    check_int,
    check_number,
)
from convgru_fused.modules import ConvGRU

from .backbones import adopt, only_map
from .memory import check_memory, start_with_memory
from .scores import mean_log_probabilities, scaled
from .vgg import VGG16, small_vgg

RECURRENCES = ("lstm", "gru")
READOUTS = ("mean", "last")


class LRCN(nn.Module):
    """A frame CNN's features, without their place in the image, and an LSTM over them.

    forward: a clip (N,T,C,H,W) -> log-probabilities (N,num_classes). Any T will do.

    Hidden size 256, dropout 0.9 and the mean over all steps are the paper's for RGB; its frame CNN is another
    one than VGG-16, which is our choice.

    Args:
        num_classes: how many classes.
        backbone: a frame CNN that returns one map, which is averaged over its pixels; None is fc6 of a VGG16
            with random weights.
        frame_shape: (C,H,W) of a frame.
        hidden_size: K.
        num_layers: recurrent layers on each other.
        recurrence: "lstm", a torch.nn.LSTM; or "gru", a GRU whose cell is GRU-RCN's (a `ConvGRU` of 1x1
            kernels), not torch.nn.GRU's.
        readout: "mean", the mean of the probabilities after every step; or "last", those after the last.
        bias: biases in the recurrence.
        memory: steps, at least 2: biases of the gates that keep the state start where they keep it for about
            so many (`convgru_fused.models.memory`); None starts them like the other biases.
        dropout: on the classifier's input.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: nn.Module | None = None,
        frame_shape: Sequence[int] = (3, 224, 224),
        hidden_size: int = 256,
        num_layers: int = 1,
        recurrence: str = "lstm",
        readout: str = "mean",
        bias: bool = True,
        memory: float | None = None,
        dropout: float = 0.9,
    ) -> None:
        super().__init__()
        check_int("num_classes", num_classes)
        check_int("hidden_size", hidden_size)
        check_int("num_layers", num_layers)
        check_choice("recurrence", recurrence, RECURRENCES)
        check_choice("readout", readout, READOUTS)
        check_memory(memory, bias)
        check_number("dropout", dropout, 0, 1)
        self.num_classes = num_classes
        self.frame_shape = check_frame_shape(frame_shape)
        self.backbone = VGG16(layers=("fc6",)) if backbone is None else backbone
        self.layer, (features, _, _) = only_map(adopt(self.backbone, self.frame_shape))
        self.readout = readout
        self.recurrence: nn.LSTM | ConvGRU
        if recurrence == "lstm":
            self.recurrence = nn.LSTM(features, hidden_size, num_layers, bias, batch_first=True)
        else:
            self.recurrence = ConvGRU(features, hidden_size, 1, num_layers, bias, batch_first=True)
        if memory is not None:
            start_with_memory(self.recurrence, memory)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def step_scores(self, clip: Tensor) -> Tensor:
        """Log-probabilities after every step: (N,T,C,H,W) -> (N,T,num_classes)."""
        check_clip("clip", clip, self.frame_shape)
        features = self.backbone(clip.flatten(0, 1))[self.layer].mean((-2, -1)).unflatten(0, clip.shape[:2])
        if isinstance(self.recurrence, nn.LSTM):
            output, _ = self.recurrence(features)  # (N,T,K)
        else:
            output = self.recurrence(features[..., None, None])[0][..., 0, 0]
        return F.log_softmax(self.classifier(self.dropout(output)), dim=-1)

    def forward(self, clip: Tensor) -> Tensor:
        scores = self.step_scores(clip)
        return scores[:, -1] if self.readout == "last" else mean_log_probabilities(scores, dim=1)

    @classmethod
    def vgg16_rnn(cls, num_classes: int, **options: Any) -> LRCN:
        """The "VGG-16 RNN" of Ballas et al. 2016: a GRU of their cell on fc7, GRU-RCN's last layer alone.
        Hidden size 512, dropout 0.7 and the last state are GRU-RCN's, and our choice here."""
        if "backbone" not in options:
            options["backbone"] = VGG16(layers=("fc7",))
        defaults: dict[str, Any] = dict(
            recurrence="gru", hidden_size=512, readout="last", bias=False, dropout=0.7
        )
        return cls(num_classes, **{**defaults, **options})

    @classmethod
    def small(
        cls,
        num_classes: int,
        frame_shape: Sequence[int] = (1, 32, 32),
        *,
        width: float = 1.0,
        **options: Any,
    ) -> LRCN:
        """The same on fc6 of a narrow VGG, for tests and training on a CPU. All layers have `width` times as
        many channels; `options` go to LRCN."""
        shape = check_frame_shape(frame_shape)
        if "backbone" not in options:
            options["backbone"] = small_vgg(shape[0], ("fc6",), width)
        defaults: dict[str, Any] = dict(hidden_size=scaled((64,), width)[0], dropout=0.0, frame_shape=shape)
        return cls(num_classes, **{**defaults, **options})
