"""The processes that train together, as torchrun starts them; one process is a group of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among `size` of them."""

    rank: int = 0
    size: int = 1
    sharded: bool = False  # each keeps a part of every parameter and of the optimizer's state (FSDP2)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over all processes. Sharding is done in place, so before there is
        an optimizer."""
        if self.size == 1:
            return model
        if not self.sharded:
            return DistributedDataParallel(model)
        device = next(model.parameters()).device.type
        fully_shard(model, mesh=init_device_mesh(device, (self.size,)))
        if hasattr(model, "layer_scores"):  # is called besides forward
            register_fsdp_forward_method(model, "layer_scores")
        return model

    def mean(self, value: Tensor) -> float:
        """Of a number of each process."""
        if self.size == 1:
            return value.item()
        value = value.detach().clone()
        distributed.all_reduce(value)
        return (value / self.size).item()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor on the CPU, by rank."""
        gathered: list[Tensor] = [tensor] * self.size
        if self.size > 1:
            distributed.all_gather_object(gathered, tensor)
        return gathered

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined(device: torch.device, sharded: bool = False) -> Iterator[tuple[Processes, torch.device]]:
    """The group that torchrun has started this process for, if it has, and the device of this process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), size, sharded), device
    finally:
        distributed.destroy_process_group()
