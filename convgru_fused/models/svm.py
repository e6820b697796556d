"""Late fusion of two streams by a linear support vector machine (Simonyan and Zisserman 2014)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convgru_fused.checks import check_number


class SVMFusion:
    """A linear SVM on the probabilities of several streams: each stream's vector is divided by its Euclidean
    length, and these are concatenated. Needs scikit-learn.

    Args:
        C: cost of an error, relative to the margin; 1 is our choice.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed. TypeError, ValueError: a wrong argument.
    """

    def __init__(self, C: float = 1.0) -> None:
        check_number("C", C, 0)
        if C == 0:
            raise ValueError("C: expected a number above 0, got 0")
        try:
            from sklearn.svm import LinearSVC
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "SVMFusion needs scikit-learn: pip install convgru_fused[models]"
            ) from error
        self._svm: Any = LinearSVC(C=C, random_state=0)
        self._shape: tuple[int, int] | None = None  # streams, classes

    def fit(self, scores: Tensor, labels: Tensor) -> SVMFusion:
        """Learns from log-probabilities (N,streams,num_classes), as `TwoStream.stream_scores` gives them, and
        labels (N,) with at least two different ones."""
        features = self._features(scores)
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: expected a Tensor, got {type(labels).__name__}")
        if labels.shape != scores.shape[:1] or labels.unique().numel() < 2:
            got = f"shape {tuple(labels.shape)}, {labels.unique().numel()} different"
            raise ValueError(f"labels: expected ({len(scores)},) with at least two different, got {got}")
        self._svm.fit(features, labels.cpu().numpy())
        self._shape = (scores.size(1), scores.size(2))
        return self

    def predict(self, scores: Tensor) -> Tensor:
        """Log-probabilities (N,streams,num_classes) -> classes (N,). An SVM has no probabilities to give."""
        if self._shape is None:
            raise ValueError("scores: expected fit to be called before predict")
        features = self._features(scores)
        if tuple(scores.shape[1:]) != self._shape:
            raise ValueError(
                f"scores: expected (N,{self._shape[0]},{self._shape[1]}), got {tuple(scores.shape)}"
            )
        return torch.as_tensor(self._svm.predict(features))

    @staticmethod
    def _features(scores: Tensor) -> Any:
        if not isinstance(scores, Tensor):
            raise TypeError(f"scores: expected a Tensor, got {type(scores).__name__}")
        if scores.dim() != 3:
            raise ValueError(f"scores: expected (N,streams,num_classes), got shape {tuple(scores.shape)}")
        return F.normalize(scores.detach().double().exp(), dim=-1).flatten(1).cpu().numpy()
