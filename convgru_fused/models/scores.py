"""What gives class scores, the average of several, and the initialisation of networks with ReLUs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused.checks import check_int, check_number

AVERAGES = ("probabilities", "log_probabilities")


class PooledClassifier(nn.Module):
    """A map's average over all pixels, dropout and a linear layer: (M,C,H,W) -> logits (M,num_classes).

    Args:
        channels: C.
        num_classes: how many classes.
        dropout: probability of zeroing an element of the average, in training.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        check_int("num_classes", num_classes)
        check_number("dropout", dropout, 0, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x.mean((-2, -1))))


def mean_log_probabilities(scores: Tensor, dim: int, weights: Sequence[float] | None = None) -> Tensor:
    """The logarithm of the (weighted) mean, over `dim`, of the probabilities whose logarithms are `scores`.

    The weights need not sum to 1.

    Raises ValueError for weights of another number, negative ones, or none above zero.
    """
    if weights is None:
        return scores.logsumexp(dim) - math.log(scores.size(dim))
    return (scores + _shares(scores, dim, weights).log()).logsumexp(dim)


def average_scores(scores: Tensor, dim: int, average: str, weights: Sequence[float] | None = None) -> Tensor:
    """The (weighted) average, over `dim`, of several classifiers' scores, which are log-probabilities.

    average: "probabilities", which is `mean_log_probabilities`, or "log_probabilities", the mean of the
    scores themselves. Its negative is the mean of the classifiers' own losses, so each is trained as if it
    were alone.
    """
    if average == "probabilities":
        return mean_log_probabilities(scores, dim, weights)
    if weights is None:
        return scores.mean(dim)
    shares = _shares(scores, dim, weights)
    return torch.where(shares > 0, shares * scores, 0).sum(dim)


def _shares(scores: Tensor, dim: int, weights: Sequence[float]) -> Tensor:
    """The weights, of a sum of 1, along a dimension of the scores."""
    count = scores.size(dim)
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(f"weights: expected {count} of at least 0 and a sum above 0, got {tuple(weights)}")
    shape = [1] * scores.dim()
    shape[dim] = count
    shares = [weight / sum(weights) for weight in weights]
    return torch.tensor(shares, dtype=scores.dtype).view(shape).to(scores.device)


def check_logits(name: str, logits: Tensor, expected: tuple[int, int]) -> Tensor:
    """Log-probabilities of the logits of a network that the caller gave, whose shape must be `expected`."""
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name}: expected logits of shape {expected}, got {got}")
    return F.log_softmax(logits, dim=-1)


def scaled(sizes: Sequence[int], width: float) -> tuple[int, ...]:
    """Every size times `width`, rounded, at least 1."""
    check_number("width", width, 0)
    return tuple(max(1, round(size * width)) for size in sizes)


def dense_layers(features: int, widths: Sequence[int], num_classes: int, dropout: float) -> nn.Sequential:
    """Rectified linear layers with dropout, and the last, linear one."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def initialize_for_relu(module: nn.Module) -> None:
    """Convolutions and linear layers so that activations keep their scale through ReLUs (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
