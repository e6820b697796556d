"""Checks of constructor arguments. Each message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_int(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """An int of at least `low` and, unless None, at most `high`; True and False are no ints here."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected {_range(low, high)}, got {value}")


def check_number(name: str, value: object, low: float, high: float | None = None) -> None:
    """An int or float in a range, the ends included."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (value >= low and (high is None or value <= high)):  # so that NaN fails
        raise ValueError(f"{name}: expected {_range(low, high)}, got {value}")


def _range(low: float, high: float | None) -> str:
    return f"at least {low}" + ("" if high is None else f" and at most {high}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_device(name: str, value: str | torch.device) -> torch.device:
    """A device that is there, or its name."""
    try:
        device = torch.device(value)
    except RuntimeError:
        raise ValueError(f"{name}: expected cpu, cuda or cuda:N, got {value!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected cpu or cuda, got {device}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: expected one that is there, got {device} without a usable CUDA")
    return device


def check_blocks(value: Any) -> list[tuple[int, ...]]:
    """The argument `blocks` of networks: for each block the channels of its convolutions."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"blocks: expected a sequence of sequences of ints, got {value!r}")
    return [check_sizes(f"blocks[{i}]", block) for i, block in enumerate(value)]


def check_names(name: str, value: object) -> tuple[str, ...]:
    """A sequence of different strings, as a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a sequence of names, got {value!r}")
    if not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name}: expected a sequence of names, got {value!r}")
    if not value or len(set(value)) != len(value):
        raise ValueError(f"{name}: expected at least one name and none twice, got {value!r}")
    return tuple(value)


def check_sizes(name: str, value: object, length: int | None = None, low: int = 1) -> tuple[int, ...]:
    """A sequence of ints of at least `low`, `length` of them unless None, as a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a sequence of ints, got {value!r}")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in value):
        raise TypeError(f"{name}: expected a sequence of ints, got {value!r}")
    if len(value) == 0 or (length is not None and len(value) != length):
        raise ValueError(f"{name}: expected {length or 'at least one'} sizes, got {value!r}")
    if any(size < low for size in value):
        raise ValueError(f"{name}: expected sizes of at least {low}, got {value!r}")
    return tuple(value)


def check_frame_shape(value: object) -> tuple[int, int, int]:
    """The shape (C,H,W) of one frame."""
    C, H, W = check_sizes("frame_shape", value, 3)
    return C, H, W


def check_module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {type(value).__name__}")


def check_clip(name: str, value: Any, frame_shape: tuple[int, int, int], frames: int = 1) -> None:
    """A floating-point (N,T,C,H,W) with frames of that shape, at least `frames` of them."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
    C, H, W = frame_shape
    if value.dim() != 5 or tuple(value.shape[2:]) != frame_shape:
        raise ValueError(f"{name}: expected (N,T,{C},{H},{W}), got shape {tuple(value.shape)}")
    if value.size(1) < frames:
        raise ValueError(f"{name}: expected at least {frames} frames, got {value.size(1)}")
