"""The rounding errors of the CPU's algorithms, as multiples of PyTorch's own fp32 errors in channels last:
the largest over outputs and all gradients. First of sequences of 50 steps, then against the length.

    python benchmarks/cpu_errors.py
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from convgru_fused import _build_info, precision
from convgru_fused.testing import Sample, error_ratios

VARIABLE = "CONVGRU_FUSED_CPU_ALGORITHM"
SIZES = dict(N=1, H=22, W=19, hx=True, layout="channels_last")
SQUARE = [dict(C=32, K=64), dict(C=32, K=64, variant="cudnn"), dict(C=256, K=64), dict(C=64, K=256)]
LINE = [dict(C=C, K=64, kernel=kernel) for C in (32, 256) for kernel in ((1, 5), (5, 1))]

# What it is, the setting, the cases.
ROWS = [
    ("F(4x4, 3x3)", "fast", SQUARE),
    ("F(4, 5)", "fast", LINE),
    ("F(2x2, 3x3)", "strict", SQUARE),
    ("direct, 1x5 and 5x1", "strict", LINE),
    ("direct, 5x5", "strict", [dict(C=64, K=64, kernel=(5, 5))]),
]
# For a 3x3 kernel: its name, the algorithm that is forced.
AGAINST_LENGTH = [("F(4x4, 3x3)", "winograd4"), ("F(2x2, 3x3)", "winograd2"), ("direct, 3x3", "direct")]
LENGTHS = (1, 10, 50, 200)


def worst(samples: Iterable[Sample]) -> str:
    ratios = [ratio for sample in samples for ratio in error_ratios(sample).values()]
    largest, rms = (max(ratio[i] for ratio in ratios) for i in (0, 1))
    return f"largest {largest:5.1f}   rms {rms:5.1f}"


def main() -> None:
    print(f"torch {torch.__version__}, {_build_info.cpu_capability()}")
    for name, setting, cases in ROWS:
        for scale in (1, 100, 0.01):
            with precision(setting):
                samples = [Sample("error", T=50, **{**SIZES, **case}, input_scale=scale) for case in cases]
                print(f"{name:20} inputs x {scale:<5} {worst(samples)}", flush=True)
    for name, algorithm in AGAINST_LENGTH:
        os.environ[VARIABLE] = algorithm
        for T in LENGTHS:
            print(f"{name:20} T = {T:<8} {worst([Sample('length', T=T, C=32, K=64, **SIZES)])}", flush=True)


if __name__ == "__main__":
    main()
