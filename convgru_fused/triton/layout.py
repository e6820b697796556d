"""Images as the kernels have them: channels last, (...,H,W,C), contiguous."""

from __future__ import annotations

from torch import Tensor


def memory(images: Tensor) -> Tensor:
    """(...,C,H,W) as contiguous (...,H,W,C) that begins where descriptors may; a view if it lies so."""
    result = images.movedim(-3, -1).contiguous()
    return result.clone() if result.data_ptr() % 16 else result


def images_of(memory: Tensor) -> Tensor:
    """(...,H,W,C) as (...,C,H,W), a view."""
    return memory.movedim(-1, -3)


def in_format(memory: Tensor, like: Tensor) -> Tensor:
    """(...,H,W,C) as (...,C,H,W) in the memory format of `like`."""
    return images_of(memory) if like.stride(-3) == 1 else images_of(memory).contiguous()
