"""`python -m convgru_fused plan`: which algorithm runs each convolution of a layer on this CPU, in how many
parts."""

from __future__ import annotations

import argparse
import re

from . import numerics
from .bench.workloads import MODELS, WORKLOADS, select
from .eager import VARIANTS

_MOST = 10**6  # of anything, so that no product of sizes is too large
_ITEM_SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def _pair(text: str) -> tuple[int, int]:
    """3 or 1x5."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a positive integer or two, as 1x5, got {text!r}")
    return _positive(match[1]), _positive(match[2] or match[1])


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to {_MOST}, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--row", metavar="NAME", help="take the sizes of a workload of the benchmark")
    parser.add_argument("--steps", "-T", type=_positive, default=10)
    parser.add_argument("--batch", "-N", type=_positive, default=1)
    parser.add_argument("--input-size", "-C", type=_positive, default=64)
    parser.add_argument("--hidden-size", "-K", type=_positive, default=64)
    parser.add_argument("--image", type=_pair, default=(56, 56), metavar="HxW")
    parser.add_argument("--kernel-size", type=_pair, default=(3, 3), metavar="3|1x5")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0])
    parser.add_argument("--dtype", choices=_ITEM_SIZES, default="float32")
    parser.add_argument("--precision", choices=numerics.SETTINGS, default="fast")
    parser.add_argument("--threads", type=_positive, help="default: as many as torch uses")


def run(args: argparse.Namespace) -> str:
    """The plan as text. Raises ValueError for an even kernel, an unknown row, no compiled part."""
    import torch

    try:
        from . import _build_info
    except ImportError:
        words = "plan: expected the compiled extension, found none; build it as README.md says"
        raise ValueError(words) from None
    T, N, C, K = args.steps, args.batch, args.input_size, args.hidden_size
    (H, W) = args.image
    kernels: tuple[tuple[int, int], ...] = (args.kernel_size,)
    if args.row is not None:
        if args.row in MODELS:
            raise ValueError(f"--row: expected a layer, {', '.join(WORKLOADS)}; got the model {args.row!r}")
        (row,) = select((args.row,))
        T, N, C, K, H, W = row.steps, row.batch_cpu, row.input_size, row.hidden_size, row.height, row.width
        T, kernels = (1 if row.form == "loop" else T), row.kernels
    threads = args.threads or torch.get_num_threads()
    lines = []
    for kh, kw in kernels:
        if kh % 2 == 0 or kw % 2 == 0:
            raise ValueError(f"--kernel-size: expected odd numbers, got {kh}x{kw}")
        lines += [
            f"T={T} N={N} {C}->{K} {H}x{W}, kernel {kh}x{kw}, {args.variant}, {args.dtype}, "
            f"{args.precision}; {_build_info.cpu_capability()}, {threads} threads",
            f"  {'convolution':22} {'times':>5} {'channels':>12}  "
            f"{'algorithm':10} {'tiles':>6} {'together':>8} {'parts':>6}",
        ]
        for name, times, algorithm, inputs, outputs, tiles, together, parts in _build_info.cpu_plan(
            T=T,
            N=N,
            C=C,
            K=K,
            H=H,
            W=W,
            kernel_h=kh,
            kernel_w=kw,
            cudnn=args.variant == "cudnn",
            itemsize=_ITEM_SIZES[args.dtype],
            fast=args.precision == "fast",
            threads=threads,
        ):
            channels = f"{inputs}->{outputs}"
            lines.append(
                f"  {name:22} {times:5} {channels:>12}  {algorithm:10} {tiles:6} {together:8} {parts:6}"
            )
    return "\n".join(lines)
