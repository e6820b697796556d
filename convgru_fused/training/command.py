"""`python -m convgru_fused train`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .catalogue import FAMILIES, LAYOUTS, TASKS

AMP = ("bfloat16", "float16")
EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    parser.add_argument("--family", choices=FAMILIES, required=True, help="what is trained")
    parser.add_argument("--task", choices=TASKS, required=True, help="on what")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="(default: 0.001)")
    parser.add_argument("--test-clips", type=int, default=512, metavar="N", help="(default: 512)")
    parser.add_argument(
        "--root", metavar="DIR", help="of the videos: DIR/train/CLASS and DIR/test/CLASS, or:"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="folder", help="of the videos (default: folder)")
    parser.add_argument("--splits", metavar="DIR", default="", help="of the official lists of ucf101, hmdb51")
    parser.add_argument("--split", type=int, default=1, metavar="N", help="of these lists (default: 1)")
    parser.add_argument(
        "--frames", type=int, default=10, metavar="T", help="of a clip of a video (default: 10)"
    )
    parser.add_argument("--size", type=int, default=32, metavar="PIXELS", help="of its frames (default: 32)")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="for files that cannot be used"
    )
    parser.add_argument("--amp", choices=AMP, help="autocast to this type")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that make clips")
    parser.add_argument("--save-every", type=int, default=100, metavar="N", help="steps (default: 100)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where a run is kept and resumed (default: runs/...)"
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from .engine import Run, train
    from .processes import joined

    try:
        wanted = Run(
            args.family,
            args.task,
            args.seed,
            args.steps,
            args.batch_size,
            args.learning_rate,
            test_clips=args.test_clips,
            task_options=_task_options(args),
        )
        folder = args.out or Path("runs") / f"{args.task}-{args.family}-{args.seed}"

        def say(step: int, loss: float) -> None:
            if (step + 1) % 50 == 0:
                print(f"step {step + 1} of {args.steps}: loss {loss:.3f}", flush=True)

        with joined(torch.device(args.device)) as (processes, device):
            result = train(
                wanted,
                folder,
                device=device,
                workers=args.workers,
                save_every=args.save_every,
                amp=getattr(torch, args.amp) if args.amp else None,
                processes=processes,
                on_step=say if processes.rank == 0 else lambda step, loss: None,
            )
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    if processes.rank > 0:
        return EXIT_OK
    print(
        f"accuracy {result.accuracy:.3f}; frames shuffled {result.shuffled_accuracy:.3f}, reversed "
        f"{result.reversed_accuracy:.3f}; {result.parameters} parameters; {folder}"
    )
    return EXIT_OK


def _task_options(args: argparse.Namespace) -> dict[str, Any]:
    """Of videos; generated tasks have theirs."""
    if args.task != "videos":
        return {}
    if args.root is None:
        raise ValueError("--root: expected the folder of the videos, got none")
    names = ("root", "splits", "layout", "split", "frames", "on_error")
    return {**{name: getattr(args, name) for name in names}, "size": [args.size, args.size]}
