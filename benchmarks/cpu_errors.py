"""The rounding errors of the CPU's algorithms, as multiples of PyTorch's own fp32 errors in channels last:
the largest over outputs and all gradients of sequences of 50 steps.

    python benchmarks/cpu_errors.py
"""

from __future__ import annotations

import torch

from convgru_fused import _build_info, precision
from convgru_fused.testing import Sample, error_ratios

SIZES = dict(T=50, N=1, H=22, W=19, hx=True, layout="channels_last")
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


def main() -> None:
    print(f"torch {torch.__version__}, {_build_info.cpu_capability()}")
    for name, setting, cases in ROWS:
        for scale in (1, 100, 0.01):
            with precision(setting):
                samples = [Sample("error", **{**SIZES, **case}, input_scale=scale) for case in cases]
                ratios = [ratio for sample in samples for ratio in error_ratios(sample).values()]
            largest, rms = (max(ratio[i] for ratio in ratios) for i in (0, 1))
            print(f"{name:20} inputs x {scale:<5} largest {largest:5.1f}   rms {rms:5.1f}", flush=True)


if __name__ == "__main__":
    main()
