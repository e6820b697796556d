"""VGG-16 as a feature pyramid, the five maps on which GRU-RCN recurs (Ballas et al. 2016); a small one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from convgru_fused.checks import check_blocks, check_int, check_names, check_number, check_sizes

from .scores import initialize_for_relu, scaled

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PYRAMID = ("pool2", "pool3", "pool4", "pool5", "fc7")
SMALL_BLOCKS = ((8,), (16,), (32,), (32,), (32,))


class VGG(nn.Module):
    """A network in the manner of Simonyan and Zisserman 2015: blocks of 3x3 convolutions, each ended by a
    2x2 maximum, then dense layers. Its maps can be read by name.

    forward: images (M,C,H,W) -> the maps named in `layers`. poolB is the output of block B (from 1), fcB+1,
    fcB+2, ... are those of the dense layers, rectified, as (M,channels,1,1). Nothing past the last of them is
    computed. Initialised so that activations keep their scale (He et al. 2015).

    Args:
        blocks: for each block the channels of its convolutions.
        dense: widths of the dense layers.
        num_outputs: of the last, linear layer; no map is called after it.
        in_channels: C.
        pool_size: rows and columns that the last block's map is averaged to before the dense layers; maps of
            that size, such as VGG-16's for 224x224 pixels, are left as they are.
        layers: the maps that forward returns.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = BLOCKS,
        dense: Sequence[int] = (4096, 4096),
        num_outputs: int = 1000,
        *,
        in_channels: int = 3,
        pool_size: int = 7,
        dropout: float = 0.5,
        layers: Sequence[str] = PYRAMID,
    ) -> None:
        super().__init__()
        sizes = check_blocks(blocks)
        widths = check_sizes("dense", dense)
        check_int("num_outputs", num_outputs)
        check_int("in_channels", in_channels)
        check_int("pool_size", pool_size)
        check_number("dropout", dropout, 0, 1)
        self.layers = check_names("layers", layers)

        convolutions: list[nn.Module] = []
        self._pools: dict[int, str] = {}  # index in features: name
        channels = in_channels
        for number, block in enumerate(sizes, start=1):
            for size in block:
                convolutions += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU(inplace=True)]
                channels = size
            self._pools[len(convolutions)] = f"pool{number}"
            convolutions.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*convolutions)
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)

        hidden: list[nn.Module] = []
        self._dense: dict[int, str] = {}  # index in classifier: name
        features = channels * pool_size**2
        for number, width in enumerate(widths, start=len(sizes) + 1):
            self._dense[len(hidden) + 1] = f"fc{number}"
            hidden += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            features = width
        self.classifier = nn.Sequential(*hidden, nn.Linear(features, num_outputs))

        names = [*self._pools.values(), *self._dense.values()]
        if unknown := [name for name in self.layers if name not in names]:
            raise ValueError(f"layers: expected some of {', '.join(names)}, got {unknown[0]!r}")
        initialize_for_relu(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        x = images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if self._pools.get(index) in self.layers:
                maps[self._pools[index]] = x
                if len(maps) == len(self.layers):
                    return self._in_order(maps)
        x = self.avgpool(x).flatten(1)
        for index, layer in enumerate(self.classifier):
            x = layer(x)
            if self._dense.get(index) in self.layers:
                maps[self._dense[index]] = x[..., None, None]
                if len(maps) == len(self.layers):
                    break
        return self._in_order(maps)

    def _in_order(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: maps[name] for name in self.layers}


class VGG16(VGG):
    """The 16-layer network of Simonyan and Zisserman, its state dict keyed as torchvision's `vgg16`.

    forward: images (N,3,224,224), normalised -> pool2 (N,128,56,56), pool3 (N,256,28,28), pool4
    (N,512,14,14), pool5 (N,512,7,7) and fc7 (N,4096,1,1), by name, or the `layers` asked for.
    """

    def __init__(self, layers: Sequence[str] = PYRAMID) -> None:
        super().__init__(layers=layers)


def small_vgg(in_channels: int, layers: Sequence[str] = PYRAMID, width: float = 1.0) -> VGG:
    """One narrow convolution a block: for frames of 32x32 pixels or more, tests and training on a CPU. All
    layers have `width` times as many channels."""
    blocks, dense = [scaled(block, width) for block in SMALL_BLOCKS], scaled((64, 64), width)
    return VGG(blocks, dense, 10, in_channels=in_channels, pool_size=1, dropout=0.0, layers=layers)


def vgg16(weights: Path | None = None, seed: int = 0) -> VGG16:
    """The network in eval mode, with weights from a file that torch.load reads, else drawn from a seed.

    Raises ValueError naming the file if it is not a state dict of this network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VGG16().eval()
    if weights is not None:
        _load(model, weights)
    return model


def check_weights(weights: Path) -> None:
    """Raises ValueError naming the file if it is not a state dict of a VGG-16."""
    with torch.device("meta"):
        model = VGG16()
    _load(model, weights)


def _load(model: VGG16, weights: Path) -> None:
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # unreadable, no checkpoint, another network's: the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{weights}: expected the state dict of a VGG-16, got {reason}") from error
