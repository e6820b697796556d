"""What a call of the operators is about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..eager import same_conv
from .launch import Batch
from .layout import images_of, memory


def expect(name: str, tensor: Tensor | None, shapes: list[tuple[int, ...]], like: Tensor) -> None:
    """Raises ValueError for a tensor of another shape, or of another dtype or device than `like`."""
    if tensor is None:
        return
    if tuple(tensor.shape) not in shapes:
        raise ValueError(f"{name}: expected {' or '.join(map(str, shapes))}, got {tuple(tensor.shape)}")
    if (tensor.dtype, tensor.device) != (like.dtype, like.device):
        raise ValueError(
            f"{name}: expected {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}"
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call is about."""

    input: Tensor | None
    hx: Tensor | None
    weight_ih: Tensor | None
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    gate_bias: Tensor | None
    lengths: Tensor | None
    variant: str
    reverse: bool
    fast: bool

    def __post_init__(self) -> None:
        """Raises ValueError if the arguments do not fit together: the kernels do not look."""
        if self.weight_hh.dim() != 4 or (self.input is None) != (self.weight_ih is None):
            raise ValueError("weight_hh, weight_ih: expected 4 dimensions, and weight_ih together with input")
        sequence = self.gate_bias if self.input is None else self.input
        if sequence is None or sequence.dim() != 5 or self.images.dim() < 4:
            raise ValueError("input, gate_bias: expected (T,N,C,H,W) of one of them")
        T, N, K, H, W = self.sizes
        C = 0 if self.input is None else self.input.size(2)
        expect("input", self.input, [(T, N, C, H, W)], self.weight_hh)
        expect("hx", self.hx, [(N, K, H, W)], self.weight_hh)
        expect("gate_bias", self.gate_bias, [(T, N, 3 * K, H, W), (T, N, 3 * K, 1, 1)], self.weight_hh)
        for name, weight, channels in (("weight_ih", self.weight_ih, C), ("weight_hh", self.weight_hh, K)):
            if weight is not None:
                kh, kw = weight.shape[2:]
                expect(name, weight, [(3 * K, channels, kh | 1, kw | 1)], self.weight_hh)
        for name, bias in (("bias_ih", self.bias_ih), ("bias_hh", self.bias_hh)):
            expect(name, bias, [(3 * K,)], self.weight_hh)
        if self.lengths is not None and (self.lengths.shape != (N,) or self.lengths.dtype != torch.int64):
            raise ValueError(f"lengths: expected {N} 64-bit integers, got {tuple(self.lengths.shape)}")

    @property
    def images(self) -> Tensor:
        """Whose memory format the output takes."""
        first = self.input if self.input is not None else self.hx
        return self.gate_bias if first is None else first  # type: ignore[return-value]

    @cached_property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """T, N, K, H, W."""
        sequence = self.gate_bias if self.input is None else self.input
        assert sequence is not None
        return (*sequence.shape[:2], self.weight_hh.size(1), *self.images.shape[-2:])  # type: ignore[return-value]

    @property
    def cudnn(self) -> bool:
        return self.variant == "cudnn"

    @property
    def relu(self) -> bool:
        return self.variant == "gru-rcn-relu"

    @property
    def bias_hn(self) -> Tensor | None:
        """(K,), which r multiplies in "cudnn"."""
        return None if self.bias_hh is None else self.bias_hh[2 * self.weight_hh.size(1) :].contiguous()

    @property
    def batch(self) -> Batch:
        _, N, _, H, W = self.sizes
        return Batch(N, H, W, self.fast)

    @property
    def planes(self) -> int:
        """Of K channels, in the gates."""
        return 4 if self.cudnn else 3

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.weight_hh.new_empty(shape, dtype=dtype)

    def valid(self, sequence: Tensor) -> Tensor:
        """sequence (T,N,...), zero past each sample's length."""
        if self.lengths is None:
            return sequence
        T, N = sequence.shape[:2]
        steps = torch.arange(T, device=sequence.device)[:, None] < self.lengths
        return torch.where(steps.view(T, N, 1, 1, 1), sequence, 0)


@dataclass(frozen=True)
class Outside:
    """What the gates receive from outside the recurrence, for all steps: r|z|n."""

    a: Tensor | None
    bias: Tensor | None  # (3K,), added to it
    image: int = 0  # elements of `a` from one image to the next; -1: there are all pixels
    pixel: int = 0
    is_ours: bool = False  # `a` may be overwritten

    @property
    def ours(self) -> Tensor | None:
        return self.a if self.is_ours else None

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        return {"a": self.a, "bias": self.bias}

    @property
    def constants(self) -> dict[str, int]:
        return {"A_IMAGE": self.image, "A_PIXEL": self.pixel}


def _bias(p: Problem) -> Tensor | None:
    """(3K,): the sum of the biases that add to the gates directly; not b_hn of "cudnn"."""
    K = p.weight_hh.size(1)
    inner = p.bias_hh
    if p.cudnn and inner is not None:
        inner = torch.cat((inner[: 2 * K], torch.zeros_like(inner[:K])))
    outer = None if p.input is None else p.bias_ih
    if inner is None or outer is None:
        only = inner if outer is None else outer
        return None if only is None else only.contiguous()
    return inner + outer


def outside(p: Problem, joined: bool = False) -> Outside:
    """joined: the input is convolved elsewhere."""
    T, N, K, H, W = p.sizes
    bias = _bias(p)  # the kernels add it: PyTorch would in a pass of its own
    maps = None if p.gate_bias is None else memory(p.valid(p.gate_bias))
    if p.input is not None and not joined:
        assert p.weight_ih is not None
        x = images_of(memory(p.valid(p.input))).flatten(0, 1)
        a = memory(same_conv(x, p.weight_ih)).view(T, N, H, W, 3 * K)
        return Outside(a if maps is None else a.add_(maps), bias, -1, 3 * K, True)
    if maps is None:
        return Outside(None, bias)
    full = maps.shape[2:4] == (H, W)
    return Outside(maps, bias, -1, 3 * K) if full else Outside(maps, bias, 3 * K)
