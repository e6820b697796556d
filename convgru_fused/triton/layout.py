"""Images as the kernels have them: channels last, (...,H,W,C), contiguous."""

from __future__ import annotations

import triton
from torch import Tensor

from ..ops import triton_interprets
from . import kernels

LARGE = 1 << 16  # elements, from which on our own copy is worth its launch
TOO_LARGE = 1 << 33  # a program copies 4 or more, and there may be 2^31 of them


def tile(R: int, C: int) -> tuple[int, int]:
    """Rows and columns of the tiles in which matrices (R,C) are transposed: 64x64, or as many elements of
    narrow ones."""
    high, wide = triton.next_power_of_2(R), triton.next_power_of_2(C)
    columns = min(4096 // min(64, high), wide)
    return min(4096 // columns, high), columns


def transposed(matrices: Tensor) -> Tensor:
    """(B,R,C), contiguous, as contiguous (B,C,R)."""
    B, R, C = matrices.shape
    result = matrices.new_empty(B, C, R)
    rows, columns = tile(R, C)
    grid = (B * triton.cdiv(R, rows) * triton.cdiv(C, columns), 1, 1)
    kernels.transpose_kernel[grid](matrices, result, R, C, rows, columns)
    return result


def _is_ours(images: Tensor, result: Tensor) -> bool:
    """Whether `transposed` makes a contiguous copy of result, a view of images: PyTorch's is several times
    slower on a GPU."""
    return (
        (images.is_cuda or triton_interprets())
        and LARGE <= images.numel() < TOO_LARGE
        and images.is_contiguous()
        and not result.is_contiguous()
    )


def memory(images: Tensor) -> Tensor:
    """(...,C,H,W) as contiguous (...,H,W,C) that begins where descriptors may; a view if it lies so."""
    result = images.movedim(-3, -1)
    if _is_ours(images, result):
        C, H, W = images.shape[-3:]
        return transposed(images.view(-1, C, H * W)).view(result.shape)
    result = result.contiguous()
    return result.clone() if result.data_ptr() % 16 else result


def images_of(memory: Tensor) -> Tensor:
    """(...,H,W,C) as (...,C,H,W), a view."""
    return memory.movedim(-1, -3)


def in_format(memory: Tensor, like: Tensor) -> Tensor:
    """(...,H,W,C) as (...,C,H,W) in the memory format of `like`."""
    result = images_of(memory)
    if like.stride(-3) == 1:
        return result
    if _is_ours(memory, result):
        H, W, C = memory.shape[-3:]
        return transposed(memory.view(-1, H * W, C)).view(result.shape)
    return result.contiguous()
