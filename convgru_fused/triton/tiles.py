"""How a convolution is cut into tiles: tables by architecture, and whether it is ours. Of the tables only
that of two bytes on Hopper has run on a GPU (docs/triton.md); none is the result of a search yet."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import cache

import torch
import triton

from ..ops import triton_interprets


@dataclass(frozen=True)
class Tile:
    """The tile of one program, and how it is run."""

    images: int  # a box of pixels; without descriptors its size alone counts
    height: int
    width: int
    channels: int  # of the output
    depth: int  # channels of the input in one product
    descriptors: bool
    warps: int = 4
    stages: int = 3

    @property
    def rows(self) -> int:
        return self.images * self.height * self.width

    def constexpr(self) -> tuple[int | bool, ...]:
        """What the kernels take as TILE."""
        return astuple(self)[:6]

    def count(self, N: int, H: int, W: int, out: int) -> int:
        """Programs for images (N,H,W) and so many output channels."""
        blocks = triton.cdiv(out, self.channels)
        if not self.descriptors:
            return triton.cdiv(N * H * W, self.rows) * blocks
        boxes = triton.cdiv(N, self.images) * triton.cdiv(H, self.height) * triton.cdiv(W, self.width)
        return boxes * blocks

    def of_image(self, H: int, W: int) -> Tile:
        """As many pixels in a box that suits images HxW: 16 wide and 16 high, or what covers the image."""
        width = min(triton.next_power_of_2(W), 16, self.rows)
        height = min(triton.next_power_of_2(H), 16, self.rows // width)
        return replace(self, images=self.rows // (width * height), height=height, width=width)

    def __str__(self) -> str:
        box = f"{self.images}x{self.height}x{self.width}" if self.descriptors else f"{self.rows}"
        how = "descriptors" if self.descriptors else "pointers"
        return (
            f"{box} pixels by {self.channels} channels, depth {self.depth}, {how}, "
            f"{self.warps} warps, {self.stages} stages"
        )


def _tile(rows: int, channels: int, depth: int, descriptors: bool, warps: int, stages: int) -> Tile:
    return Tile(1, 1, rows, channels, depth, descriptors, warps, stages)


# By (backend, architecture) and the size of an element in bytes; for an architecture that is not here the
# last before it counts. For the kernel that keeps least in registers; see SHARES.
TILES: dict[tuple[str, int], dict[int, Tile]] = {
    ("cuda", 80): {2: _tile(128, 64, 32, False, 8, 4), 4: _tile(64, 64, 32, False, 8, 3)},
    ("cuda", 90): {2: _tile(128, 128, 64, True, 8, 3), 4: _tile(128, 64, 32, True, 8, 3)},
    ("cuda", 100): {2: _tile(128, 128, 64, True, 8, 3), 4: _tile(128, 64, 32, True, 8, 3)},
    ("cuda", 120): {2: _tile(128, 64, 32, True, 8, 3), 4: _tile(64, 64, 32, True, 8, 3)},
    ("hip", 0): {2: _tile(128, 64, 32, False, 4, 2), 4: _tile(64, 64, 32, False, 4, 2)},
}
# The part of a tile's channels that a kernel takes, by what it keeps in registers: with more it would spill.
SHARES = {
    "reset_update_kernel": 1,
    "candidate_kernel": 1,
    "cudnn_step_kernel": 4,
    "candidate_backward_kernel": 2,
    "reset_update_backward_kernel": 2,
    "cudnn_step_backward_kernel": 4,
    "add_kernel": 1,
}
INTERPRETED = _tile(256, 32, 32, True, 4, 1)


def of_architecture(backend: str, arch: int, itemsize: int, kernel: str) -> Tile:
    """The tile of a kernel in the table of the newest architecture up to `arch`."""
    known = [key for key in TILES if key[0] == backend and key[1] <= arch]
    if not known:
        raise ValueError(f"no tiles for {backend} {arch}")
    tile = TILES[max(known)][itemsize]
    return replace(tile, channels=tile.channels // SHARES[kernel])


@cache
def _architecture(device_index: int | None) -> tuple[str, int]:
    if torch.version.hip is not None:
        return "hip", 0
    major, minor = torch.cuda.get_device_capability(device_index)
    return "cuda", 10 * major + minor


def prefers_library(weight: torch.Tensor, fast: bool) -> bool:
    """Whether PyTorch's own convolution is taken, and only what follows it is ours.

    So it is where there are no tensor cores for the type; and in two bytes on Hopper, where our 3x3
    convolutions, with what follows them, took 1.3 to 2.9 times as long as cuDNN's alone, and a whole forward
    pass 5.40 ms instead of 4.88 (docs/triton.md). Elsewhere nothing has been measured, and ours is taken.
    """
    if triton_interprets():
        return False
    if weight.element_size() == 4:
        return not fast
    return _architecture(weight.device.index) == ("cuda", 90)


def _fitted(tile: Tile, H: int, W: int, out: int) -> Tile:
    """For images HxW and so many output channels."""
    most = max(16, triton.next_power_of_2(out))
    return replace(tile, channels=min(tile.channels, most)).of_image(H, W)


def choose(kernel: str, weight: torch.Tensor, H: int, W: int, out: int, channels: tuple[int, ...]) -> Tile:
    """The tile of a kernel, for a convolution of images HxW to `out` channels, on the device and in the dtype
    of a weight.

    channels: input channels and distances of pixels, which must all be multiples of 16 bytes if descriptors
    are to be used.
    """
    size = weight.element_size()
    if triton_interprets():
        tile = INTERPRETED
    else:
        tile = of_architecture(*_architecture(weight.device.index), size, kernel)
    if any(c * size % 16 for c in channels):
        tile = replace(tile, descriptors=False)
    return _fitted(tile, H, W, out)


def candidates(chosen: Tile, H: int, W: int, out: int) -> list[Tile]:
    """The tile that was chosen, and others to be measured."""
    others = [
        _tile(rows, width, depth, descriptors, warps, stages)
        for rows, width in ((64, 64), (128, 64), (128, 128), (256, 64), (256, 128))
        for depth in (32, 64)
        for warps, stages in ((4, 4), (8, 3))
        for descriptors in {False, chosen.descriptors}
    ]
    return list(dict.fromkeys([chosen, *(_fitted(tile, H, W, out) for tile in others)]))
