"""The memory that a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(forward: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages that autograd saves tensors in while `forward` runs, each counted once.

    without: the caller's own tensors (input, parameters), whose storages are there anyway.
    """
    callers = {tensor.untyped_storage().data_ptr() for tensor in without}
    # Holding the storages keeps their addresses from being reused.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in callers:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())
