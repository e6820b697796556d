"""Recurrences that start with a long memory: Tallec and Ollivier, "Can recurrent neural networks warp time?",
2018 (arXiv 1804.11188)."""

from __future__ import annotations

import math

import torch
from torch import nn

from convgru_fused.checks import check_bool, check_number
from convgru_fused.modules import ConvGRU


def check_memory(memory: object, bias: object) -> None:
    """memory: steps, at least 2, or None; they need biases. Raises TypeError or ValueError naming either."""
    check_bool("bias", bias)
    if memory is None:
        return
    check_number("memory", memory, 2)
    if not bias:
        raise ValueError(f"memory: expected None together with bias=False, got {memory}")


def start_with_memory(recurrence: nn.Module, steps: float) -> None:
    """Sets the biases of the gates that keep the state so that, where no input says otherwise, they let go of
    a part of 1/steps of it at each step; the state lasts about so many. recurrence: a ConvGRU or an LSTM."""
    value = math.log(steps - 1)
    if isinstance(recurrence, ConvGRU) and recurrence.variant != "cudnn":
        value = -value  # whose update gate is the part that is new
    gates = 4 if isinstance(recurrence, nn.LSTM) else 3  # i|f|g|o, r|z|n
    with torch.no_grad():
        for name, parameter in recurrence.named_parameters():
            if name.startswith("bias"):  # one of each is added to the other
                parameter.chunk(gates)[1].fill_(value if name.startswith("bias_ih") else 0.0)
