"""Models of published packages, to fuse and to measure: torchvision's RAFT, the ConvGRU of dgmr."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch
from torch import nn


@cache
def _declared() -> torch.library.Library | None:
    """torchvision's wheel from a package index is built for another torch than the CPU one, and does not
    import beside it for two operators that RAFT has no use for: they are declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "torchvision is not installed: pip install --no-deps torchvision", name="torchvision"
        )
    try:
        for file in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
            torch.ops.load_library(str(file))
    except OSError:
        pass
    if torch._C._dispatch_has_kernel("torchvision::nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def raft(large: bool = True, seed: int = 0) -> nn.Module:
    """torchvision's RAFT with seeded random weights, in eval mode; forward(image1, image2, num_flow_updates).

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    _declared()
    from torchvision.models.optical_flow import raft_large, raft_small

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (raft_large if large else raft_small)(weights=None).eval()


def dgmr_conv_gru(input_channels: int, output_channels: int, seed: int = 0) -> nn.Module:
    """The ConvGRU of the package dgmr, C = input_channels - output_channels, with seeded random weights, in
    eval mode; forward(sequence of (N,C,H,W), state). Its file alone: the package imports much more.

    Raises:
        ModuleNotFoundError: dgmr is not installed.
    """
    package = importlib.util.find_spec("dgmr")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("dgmr is not installed: pip install --no-deps dgmr", name="dgmr")
    name = "convgru_fused.bench._dgmr_conv_gru"
    if name not in sys.modules:
        file = Path(package.submodule_search_locations[0]) / "layers" / "ConvGRU.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gru: nn.Module = sys.modules[name].ConvGRU(input_channels, output_channels)
    return gru.eval()
