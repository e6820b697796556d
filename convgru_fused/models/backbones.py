"""Frame CNNs: networks that take images (M,C,H,W) and return maps (M,channels,h,w) by name.

`convgru_fused.models.vgg.VGG` is one; `NamedLayers` makes one of any other network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from convgru_fused.checks import check_frame_shape, check_module, check_names

from .scores import PooledClassifier

Shape = tuple[int, int, int]  # channels, rows, columns


class NamedLayers(nn.Module):
    """The outputs of some layers of a network: a frame CNN of torchvision, timm or one's own.

    forward: images (M,C,H,W) -> the layers' outputs by name, (M,channels) as (M,channels,1,1). Where a layer
    is called more than once, the last call counts. If the layer after it works in place, such as
    `ReLU(inplace=True)`, the output is what that layer left.

    Args:
        network: any module that takes images.
        layers: names of its submodules as `named_modules` gives them: "layer3", "features.16".

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; in forward too, for a
            layer that was not called, or gave no tensor of two or four dimensions.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        check_module("network", network)
        self.layers = check_names("layers", layers)
        names = dict(network.named_modules())
        if unknown := [name for name in self.layers if name not in names]:
            some = ", ".join([name for name in names if name][:20])
            raise ValueError(f"layers: expected submodules of the network ({some}, ...), got {unknown[0]!r}")
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, args, output: outputs.__setitem__(name, output)

        # Only while it runs: hooks that stay are closures, which neither pickle nor follow a deep copy.
        hooks = [self.network.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: _as_map(name, outputs.get(name)) for name in self.layers}


def _as_map(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layers: expected {name!r} to give (M,C,H,W) or (M,C), got {got}")
    return output[..., None, None] if output.dim() == 2 else output


class FrameClassifier(nn.Module):
    """A classifier of single images: a frame CNN's map, averaged over its pixels, dropout, a linear layer.

    forward: images (M,C,H,W) -> logits (M,num_classes).

    Args:
        backbone: a frame CNN that returns one map.
        num_classes: how many classes.
        frame_shape: (C,H,W) of an image.
        dropout: on the linear layer's input.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, frame_shape: Sequence[int], dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.frame_shape = check_frame_shape(frame_shape)
        self.layer, (channels, _, _) = only_map(adopt(backbone, self.frame_shape))
        self.backbone = backbone
        self.classifier = PooledClassifier(channels, num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images)[self.layer])


def adopt(backbone: nn.Module, frame_shape: Shape) -> dict[str, Shape]:
    """The shapes of a frame CNN's maps, by name; the parameters that no map depends on (a last layer that is
    not read) stop to require gradients, for which DistributedDataParallel would wait.

    It runs on meta tensors, so that nothing is computed.

    Raises TypeError or ValueError if it is no module that returns maps by name for frames of that shape.
    """
    check_module("backbone", backbone)
    leaves = {name: _on_meta(p) for name, p in (*backbone.named_parameters(), *backbone.named_buffers())}
    # Two images: in training, batch normalisation refuses one.
    images = torch.empty(2, *frame_shape, device="meta")
    first = next(backbone.parameters(), None)
    images = images if first is None else images.to(first.dtype)
    try:
        with torch.enable_grad():
            maps = functional_call(backbone, leaves, (images,))
    except Exception as error:  # of any layer of any network
        raise ValueError(
            f"backbone: expected a network for frames of shape {frame_shape}, got {error}"
        ) from error
    if not isinstance(maps, dict) or not maps:
        raise TypeError(
            f"backbone: expected maps by name (as of models.NamedLayers), got {type(maps).__name__}"
        )
    for name, x in maps.items():
        if not isinstance(x, Tensor) or x.dim() != 4 or x.size(0) != 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"backbone: expected a map (M,C,H,W) named {name!r}, got {got}")
    trained = {name: p for name, p in leaves.items() if p.requires_grad}
    if trained:
        read = [x.sum() for x in maps.values() if x.requires_grad]
        grads = torch.autograd.grad(read, list(trained.values()), allow_unused=True) if read else ()
        used = {name for name, grad in zip(trained, grads, strict=False) if grad is not None}
        for name, parameter in backbone.named_parameters():
            if name in trained and name not in used:
                parameter.requires_grad_(False)
    return {name: (x.size(1), x.size(2), x.size(3)) for name, x in maps.items()}


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)


def only_map(shapes: dict[str, Shape]) -> tuple[str, Shape]:
    """Name and shape of the single map. Raises ValueError if there are several."""
    if len(shapes) != 1:
        raise ValueError(f"backbone: expected a frame CNN that returns one map, got {', '.join(shapes)}")
    return next(iter(shapes.items()))


def output_features(module: nn.Module, shape: Sequence[int]) -> int:
    """How many numbers a module without buffers gives for one input of `shape`, found on meta tensors.

    Raises ValueError if the input is too small for it.
    """
    leaves = {name: _on_meta(p) for name, p in module.named_parameters()}
    try:
        output = functional_call(module, leaves, (torch.empty(1, *shape, device="meta"),))
    except RuntimeError as error:
        raise ValueError(f"frame_shape: expected frames large enough for every layer: {error}") from error
    return output.numel()
