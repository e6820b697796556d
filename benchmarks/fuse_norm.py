"""What fusing could win where a normalisation stands between convolution and gate: a loop with GroupNorm as
people write it, against the same with the input convolutions of all steps at once, which is all that can be
taken together there. Milliseconds of forward pass, and of forward and backward pass; fp32, batch 1.

    python benchmarks/fuse_norm.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convgru_fused import _build_info
from convgru_fused.bench import timing

# C, K, image side, T.
SIZES = ((64, 64, 32, 10), (64, 64, 64, 10), (128, 128, 16, 10), (16, 16, 32, 16))


class Loop(nn.Module):
    def __init__(self, C: int, K: int) -> None:
        super().__init__()
        self.C, self.K = C, K
        self.gates, self.new = (nn.Conv2d(C + K, n * K, 3, padding=1) for n in (2, 1))
        self.gates_norm, self.new_norm = nn.GroupNorm(8, 2 * K), nn.GroupNorm(8, K)

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.size(1), self.K, *x.shape[3:]), []
        for frame in x:
            r, z = self.gates_norm(self.gates(torch.cat([frame, h], 1))).sigmoid().chunk(2, 1)
            n = self.new_norm(self.new(torch.cat([frame, r * h], 1))).tanh()
            h = (1 - z) * h + z * n
            states.append(h)
        return torch.stack(states)

    def hoisted(self, x: Tensor) -> Tensor:
        C, K = self.C, self.K
        convs = (self.gates, self.new)
        W, b = torch.cat([c.weight[:, :C] for c in convs]), torch.cat([c.bias for c in convs])
        U_rz, U_n = (c.weight[:, C:].contiguous() for c in convs)
        outside = F.conv2d(x.flatten(0, 1), W, b, padding=1).unflatten(0, x.shape[:2])
        h, states = x.new_zeros(x.size(1), K, *x.shape[3:]), []
        for a in outside:
            r, z = self.gates_norm(a[:, : 2 * K] + F.conv2d(h, U_rz, padding=1)).sigmoid().chunk(2, 1)
            n = self.new_norm(a[:, 2 * K :] + F.conv2d(r * h, U_n, padding=1)).tanh()
            h = (1 - z) * h + z * n
            states.append(h)
        return torch.stack(states)


def train(loop: Callable[[Tensor], Tensor], x: Tensor) -> None:
    loop(x).sum().backward()


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_build_info.cpu_capability()}")
    for C, K, side, T in SIZES:
        torch.manual_seed(0)
        loop, x = Loop(C, K), torch.randn(T, 1, C, side, side)
        ways = {"written": loop.forward, "hoisted": loop.hoisted}
        torch.testing.assert_close(loop.hoisted(x), loop(x), atol=1e-4, rtol=0)

        programs = {
            f"{n} forward": timing.Plain(torch.inference_mode()(partial(f, x))) for n, f in ways.items()
        }
        programs |= {f"{n} train": timing.Plain(partial(train, f, x)) for n, f in ways.items()}
        spread = timing.interleaved(programs, x.device, timing.FULL)
        ms = {name: s.median * 1e3 for name, s in spread.items()}
        print(
            f"{C}->{K}, {side}x{side}, T={T:<3}",
            *(
                f"  {mode} {ms[f'written {mode}']:6.1f} -> {ms[f'hoisted {mode}']:6.1f}"
                f" ({ms[f'written {mode}'] / ms[f'hoisted {mode}']:.2f}x)"
                for mode in ("forward", "train")
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
