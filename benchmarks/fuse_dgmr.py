"""The four ConvGRUs of DGMR's sampler as the package dgmr has them, as they are and fused: batch 1, 18 steps
of the same input, fp32. Milliseconds of the forward pass and of forward and backward pass. Spectral norm is
in both; in training its estimates move on at every step.

    python benchmarks/fuse_dgmr.py
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from convgru_fused import _build_info, fuse
from convgru_fused.bench import timing
from convgru_fused.bench.published import dgmr_conv_gru

STEPS = 18
# Channels of input and state, and the size of the images (Ravuri et al. 2021, figure of the sampler).
LEVELS = ((768, 384, 8), (384, 192, 16), (192, 96, 32), (96, 48, 64))
DEVICE = torch.device("cpu")


def program(gru: nn.Module, training: bool, size: tuple[int, int, int]) -> timing.Plain:
    C, K, side = size
    x, h = torch.randn(1, C, side, side), torch.randn(1, K, side, side)
    if not training:

        def forward() -> None:
            with torch.inference_mode():
                gru([x] * STEPS, h)

        return timing.Plain(forward)
    x.requires_grad_()
    gradient = torch.randn(STEPS, 1, K, side, side)
    return timing.Plain(lambda: gru([x] * STEPS, h).backward(gradient))


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_build_info.cpu_capability()}")
    for size in LEVELS:
        C, K, side = size
        for training in (False, True):
            original = dgmr_conv_gru(C + K, K).train(training)
            fused = copy.deepcopy(original)
            assert fuse(fused, (torch.randn(2, 1, C, side, side), torch.randn(1, K, side, side))).replaced
            torch.manual_seed(0)
            programs = {
                name: program(gru, training, size) for name, gru in (("fused", fused), ("original", original))
            }
            spread = timing.interleaved(programs, DEVICE, timing.FULL)
            ours, theirs = (spread[name].median * 1e3 for name in ("fused", "original"))
            print(
                f"{C}->{K}, {side}x{side}  {'train' if training else 'forward':8}"
                f"fused {ours:6.1f}   original {theirs:6.1f}   {theirs / ours:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
