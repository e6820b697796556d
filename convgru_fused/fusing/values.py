"""What a recording knows of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .channels import Channels, Ref


class NotFollowed(Exception):
    """An operator does something that has no meaning here; its text says what."""


@dataclass(frozen=True)
class Image:
    """(N,C,H,W)"""

    channels: Channels


@dataclass(frozen=True)
class Clip:
    """(T,N,C,H,W) or (N,T,C,H,W): `axes` says which axis of `tensor` its first two are."""

    tensor: Ref
    axes: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Stack:
    """Images one after the other along axis 0 or 1."""

    axis: int
    frames: tuple[Channels, ...]


@dataclass(frozen=True)
class Parameter:
    """A tensor that belongs to the module, or its elements from `start` on along its first two axes, which
    have `whole` elements. `vector` if they lie along one axis: one value a channel."""

    name: str
    vector: bool
    whole: tuple[int, int] = (1, 1)
    start: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Padded:
    """An image with zeros around it."""

    image: Image
    padding: tuple[int, int]


@dataclass(frozen=True)
class Unknown:
    """What is not followed, and why."""

    reason: str


Value = Image | Clip | Stack | Parameter | Padded | Unknown


def is_vector(tensor: Tensor) -> bool:
    """Whether all its elements lie along one axis."""
    return tensor.numel() == max(tensor.shape, default=0)


def adds_by_channel(tensor: Tensor) -> bool:
    """Whether a vector's axis is that of an image's channels."""
    C = tensor.numel()
    return tuple(tensor.shape) in ((C, 1, 1), (1, C, 1, 1))
