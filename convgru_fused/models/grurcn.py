"""GRU-RCN: Ballas, Yao, Pal, Courville, "Delving Deeper into Convolutional Networks for Learning Video
Representations", 2016 (arXiv 1511.06432)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused.checks import check_bool
from convgru_fused.modules import ConvGRU

from .memory import check_memory, start_with_memory
from .pyramid import HIDDEN_SIZES, RecurrentPyramid
from .vgg import VGG16


class GRURCN(RecurrentPyramid):
    """A `ConvGRU` on each of several maps of a frame CNN, a classifier on each one's last state averaged over
    its pixels, and the mean of the classifiers' probabilities.

    forward: a clip (N,T,C,H,W) -> log-probabilities (N,num_classes); `layer_scores` gives each layer's.

    As published by default: VGG-16's pool2 to pool5 and fc7 for frames of 224x224, hidden sizes 64, 128, 256,
    256, 512, dropout 0.7, no biases (the paper's equations write none).

    Args:
        num_classes: how many classes.
        backbone: a frame CNN (see `convgru_fused.models.NamedLayers`) whose maps are read; None is a VGG16
            with random weights.
        frame_shape: (C,H,W) of a frame.
        hidden_sizes: K of each of the backbone's maps.
        kernel_size: odd; 1 on maps of one pixel. 3 is the paper's example.
        stacked: the gates of every layer but the first also see the state of the layer below at the same time
            step, reduced to their own size by a maximum and convolved (the candidate does not).
        bidirectional: a second recurrence reads the frames backwards. It has weights of its own, and its last
            state is concatenated with the first one's: our choices.
        bias: biases in the recurrences.
        memory: steps, at least 2: biases of the update gates start where a state is kept for about so many
            (Tallec and Ollivier 2018); None starts them like the other biases.
        dropout: on the input of every classifier.
        average: "probabilities", or "log_probabilities", which trains every classifier as if it were alone;
            forward then gives the mean of their log-probabilities.
        variant, recompute: of `convgru_fused.ConvGRU`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came. `stacked` together with
            `bidirectional` is refused, since no definition of it is known; so is `memory` without `bias`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: nn.Module | None = None,
        frame_shape: Sequence[int] = (3, 224, 224),
        hidden_sizes: Sequence[int] = HIDDEN_SIZES,
        kernel_size: int = 3,
        stacked: bool = False,
        bidirectional: bool = False,
        bias: bool = False,
        memory: float | None = None,
        dropout: float = 0.7,
        average: str = "probabilities",
        variant: str = "gru-rcn",
        recompute: bool = False,
    ) -> None:
        for name, value in (
            ("stacked", stacked),
            ("bidirectional", bidirectional),
            ("recompute", recompute),
        ):
            check_bool(name, value)
        if stacked and bidirectional:
            raise ValueError("stacked: expected False together with bidirectional=True, got True")
        check_memory(memory, bias)

        def make_layer(C: int, K: int, kernel: int) -> ConvGRU:
            options = dict(bidirectional=bidirectional, variant=variant, recompute=recompute)
            return ConvGRU(C, K, kernel, bias=bias, batch_first=True, **options)  # type: ignore[arg-type]

        backbone = VGG16() if backbone is None else backbone
        D = 2 if bidirectional else 1
        super().__init__(
            num_classes, backbone, frame_shape, hidden_sizes, kernel_size, dropout, average, D, make_layer
        )
        if memory is not None:
            for recurrence in self.recurrences:
                start_with_memory(recurrence, memory)
        self.stacked = stacked
        self.bidirectional = bidirectional
        layers = zip(self.hidden_sizes, self.hidden_sizes[1:], self.kernel_sizes[1:], strict=False)
        # (2K_l,K_{l-1},kh,kw), gates r|z: the convolution of the state below, for all layers but the first.
        self.from_below = nn.ModuleList(
            nn.Conv2d(below, 2 * K, kernel, padding=kernel // 2, bias=False)
            for below, K, kernel in (layers if stacked else ())
        )

    def last_states(self, maps: Sequence[Tensor]) -> list[Tensor]:
        last: list[Tensor] = []
        states: Tensor | None = None  # of the layer below, (N,T,K,H,W)
        for index, (recurrence, x) in enumerate(zip(self.recurrences, maps, strict=True)):
            gate_bias = None
            if self.stacked and states is not None:
                gate_bias = self._gate_bias(self.from_below[index - 1], states, x)
            states, h_n = recurrence(x, gate_bias=gate_bias)  # h_n (D,N,K,H,W)
            last.append(torch.cat(list(h_n), dim=1))
        return last

    @staticmethod
    def _gate_bias(convolution: nn.Module, below: Tensor, x: Tensor) -> Tensor:
        """(N,T,K_{l-1},H_{l-1},W_{l-1}) -> (N,T,3K_l,H_l,W_l), zero for the candidate. The layer below has
        run through the whole clip before, so that all time steps are one batch."""
        pooled = F.adaptive_max_pool2d(below.flatten(0, 1), (x.size(-2), x.size(-1)))
        gates = convolution(pooled)
        return F.pad(gates, (0, 0, 0, 0, 0, gates.size(1) // 2)).unflatten(0, (x.size(0), x.size(1)))
