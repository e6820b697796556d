"""VGG-16 as a feature pyramid: the five maps on which GRU-RCN recurs (Ballas et al. 2016)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

_CHANNELS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
_PYRAMID = {"pool2": 9, "pool3": 16, "pool4": 23, "pool5": 30}  # index of the layer in `features`
_FC7 = 4  # index in `classifier` of the rectified second layer


class VGG16(nn.Module):
    """The 16-layer network of Simonyan and Zisserman, its state dict keyed as torchvision's `vgg16`.

    forward: images (N,3,224,224), normalised -> pool2 (N,128,56,56), pool3 (N,256,28,28), pool4
    (N,512,14,14), pool5 (N,512,7,7) and fc7 (N,4096,1,1), by name. Initialised so that activations keep their
    scale (He et al. 2015).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for size in _CHANNELS:
            if isinstance(size, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU(inplace=True)]
                channels = size
        self.features = nn.Sequential(*layers)
        dense = ((512 * 7 * 7, 4096), (4096, 4096))
        hidden = [m for sizes in dense for m in (nn.Linear(*sizes), nn.ReLU(inplace=True), nn.Dropout())]
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096, 1000))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, x = {}, images
        names = {index: name for name, index in _PYRAMID.items()}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in names:
                maps[names[index]] = x
        return {**maps, "fc7": self.classifier[: _FC7 + 1](x.flatten(1))[..., None, None]}


def vgg16(weights: Path | None = None, seed: int = 0) -> VGG16:
    """The network in eval mode, with weights from a file that torch.load reads, else drawn from a seed.

    Raises ValueError naming the file if it is not a state dict of this network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VGG16().eval()
    if weights is not None:
        try:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # unreadable, no checkpoint, another network's: the same to the user
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{weights}: expected the state dict of a VGG-16, got {reason}") from error
    return model
