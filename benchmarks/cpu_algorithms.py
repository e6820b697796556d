"""Is the algorithm that csrc/cpu/plan.cpp chooses the fastest one? Times layers of many sizes with each
algorithm forced, and as chosen.

    python benchmarks/cpu_algorithms.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from convgru_fused import ConvGRU, _build_info

VARIABLE = "CONVGRU_FUSED_CPU_ALGORITHM"
ALGORITHMS = ("direct", "winograd2", "winograd4")
T = 4
# In turn, so that all of them meet what else the machine does.
ROUNDS, SECONDS = 6, 0.12

# N, C, K, H, W, kernel
CASES = [
    (N, C, K, size, size, (3, 3))
    for C, K in ((3, 16), (16, 16), (64, 64), (256, 128), (512, 256))
    for size in (1, 4, 7, 14, 28, 56)
    for N in (1, 8)
    if N * size * size * C * K <= 8 * 28 * 28 * 256 * 128
] + [(1, C, K, H, W, (1, 5)) for C, K in ((16, 16), (256, 128)) for H, W in ((1, 4), (4, 8), (32, 64))]


def best_of(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure(case: tuple, train: bool) -> dict[str, float]:
    """Milliseconds a step, by algorithm."""
    N, C, K, H, W, kernel = case
    model = ConvGRU(C, K, kernel)
    x, hx = torch.randn(T, N, C, H, W, requires_grad=train), torch.randn(1, N, K, H, W)

    def run() -> None:
        with torch.set_grad_enabled(train):
            output, _ = model(x, hx)
            if train:
                torch.autograd.grad(output, [x, *model.parameters()], output.detach())

    times = dict.fromkeys((*ALGORITHMS, "chosen"), float("inf"))
    for _ in range(ROUNDS):
        for name in times:
            if name == "chosen":
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = name
            times[name] = min(times[name], best_of(run, SECONDS / ROUNDS) * 1e3 / T)
    return times


def main() -> None:
    machine = f"{_build_info.cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}; ms a step")
    print(f"{'N, C->K, HxW, kernel':32}", *(f"{name:>10}" for name in (*ALGORITHMS, "chosen", "loss")))
    losses = []
    for train in (False, True):
        print("forward and backward" if train else "forward")
        for case in CASES:
            times = measure(case, train)
            loss = times["chosen"] / min(times[name] for name in ALGORITHMS)
            losses.append(loss)
            N, C, K, H, W, (kh, kw) = case
            label = f"{N}, {C}->{K}, {H}x{W}, {kh}x{kw}"
            print(
                f"{label:32}", *(f"{value:10.3f}" for value in times.values()), f"{loss - 1:9.0%}", flush=True
            )
    mean = sum(losses) / len(losses)
    print(f"chosen slower than the fastest by {mean - 1:.0%} on average, most {max(losses) - 1:.0%}")


if __name__ == "__main__":
    main()
