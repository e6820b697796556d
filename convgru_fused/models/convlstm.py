"""ConvLSTM: Shi et al., "Convolutional LSTM Network", 2015 (arXiv 1506.04214), without its peepholes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convgru_fused.checks import check_bool

from .pyramid import HIDDEN_SIZES, RecurrentPyramid
from .vgg import VGG16


class ConvLSTMLayer(nn.Module):
    """One ConvLSTM over a sequence of images, in plain PyTorch:

        i, f, o = sigmoid(W*x + U*h + b)    g = tanh(W_g*x + U_g*h + b_g)    c' = f.c + i.g    h' = o.tanh(c')

    forward: (N,T,C,H,W) -> states h of all steps (N,T,K,H,W).

    Args:
        input_size: C. hidden_size: K. kernel_size: odd, padded with zeros to keep HxW.
        bias: whether there is a b. That of f starts at 1 (Jozefowicz et al. 2015), the rest at 0.
    """

    def __init__(self, input_size: int, hidden_size: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.input = nn.Conv2d(input_size, 4 * hidden_size, kernel_size, padding=padding, bias=bias)
        self.state = nn.Conv2d(hidden_size, 4 * hidden_size, kernel_size, padding=padding, bias=False)
        self.hidden_size = hidden_size
        if self.input.bias is not None:
            nn.init.zeros_(self.input.bias)
            nn.init.ones_(self.input.bias[hidden_size : 2 * hidden_size])

    def forward(self, x: Tensor) -> Tensor:
        from_input = self.input(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # of all steps, (N,T,4K,H,W)
        h = c = from_input.new_zeros(x.size(0), self.hidden_size, *x.shape[-2:])
        states = []
        for t in range(x.size(1)):
            i, f, o, g = (from_input[:, t] + self.state(h)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, dim=1)


class ConvLSTM(RecurrentPyramid):
    """`GRURCN` with ConvLSTMs instead of ConvGRUs: the same maps, hidden sizes and classifiers.

    forward: a clip (N,T,C,H,W) -> log-probabilities (N,num_classes); `layer_scores` gives each layer's.

    Args:
        num_classes, backbone, frame_shape, hidden_sizes, kernel_size, dropout, average: as in `GRURCN`.
        bias: biases in the recurrences, which Shi et al. have.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: nn.Module | None = None,
        frame_shape: Sequence[int] = (3, 224, 224),
        hidden_sizes: Sequence[int] = HIDDEN_SIZES,
        kernel_size: int = 3,
        bias: bool = True,
        dropout: float = 0.7,
        average: str = "probabilities",
    ) -> None:
        check_bool("bias", bias)
        super().__init__(
            num_classes,
            VGG16() if backbone is None else backbone,
            frame_shape,
            hidden_sizes,
            kernel_size,
            dropout,
            average,
            1,
            lambda C, K, kernel: ConvLSTMLayer(C, K, kernel, bias),
        )

    def last_states(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [recurrence(x)[:, -1] for recurrence, x in zip(self.recurrences, maps, strict=True)]
