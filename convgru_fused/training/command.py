"""`python -m convgru_fused train`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import check_device, check_int
from .catalogue import FAMILIES, LAYOUTS, TASKS

if TYPE_CHECKING:
    from .engine import Result, Run

AMP = ("bfloat16", "float16")
EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130
# Options that are fields of a run, and those that are options of the task "videos". Without a default here,
# so that it is known which of them were given.
_FIELDS = ("family", "task", "seed", "steps", "batch_size", "learning_rate", "test_clips")
_OF_VIDEOS = ("root", "layout", "splits", "split", "frames", "size", "on_error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML with fields of a run; options override it"
    )
    what.add_argument("--family", choices=FAMILIES)
    what.add_argument("--task", choices=TASKS)
    what.add_argument("--seed", type=int, metavar="N", help="(default: 0)")
    what.add_argument("--steps", type=int, metavar="N", help="(default: 1000)")
    what.add_argument("--batch-size", type=int, metavar="N", help="(default: 32)")
    what.add_argument("--learning-rate", type=float, metavar="X", help="(default: 0.001)")
    what.add_argument("--test-clips", type=int, metavar="N", help="(default: 512)")
    videos = parser.add_argument_group("the task videos")
    videos.add_argument(
        "--root", metavar="DIR", help="DIR/train/CLASS and DIR/test/CLASS, or with a layout DIR/CLASS"
    )
    videos.add_argument("--layout", choices=LAYOUTS, help="(default: folder)")
    videos.add_argument("--splits", metavar="DIR", help="the official lists of ucf101 or hmdb51")
    videos.add_argument("--split", type=int, metavar="N", help="of these lists (default: 1)")
    videos.add_argument("--frames", type=int, metavar="T", help="of a clip (default: 10)")
    videos.add_argument("--size", type=int, metavar="PIXELS", help="of its frames (default: 32)")
    videos.add_argument(
        "--on-error", choices=("raise", "skip"), help="for files that cannot be used (default: raise)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--amp", choices=AMP, help="autocast to this type")
    how.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    how.add_argument("--fsdp", action="store_true", help="shard the model over the processes of torchrun")
    how.add_argument("--workers", type=int, default=0, metavar="N", help="processes that make clips")
    how.add_argument("--save-every", type=int, default=100, metavar="N", help="steps (default: 100)")
    how.add_argument("--tensorboard", action="store_true", help="log to the run's folder for TensorBoard")
    how.add_argument(
        "--out", type=Path, metavar="DIR", help="where a run is kept and resumed (default: runs/...)"
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from .engine import train
    from .processes import joined

    try:
        check_int("--save-every", args.save_every)
        device = check_device("--device", args.device)
        wanted = run_of(args)
        folder = args.out or Path("runs") / wanted.name
        log = _Log(folder / "tensorboard", wanted) if args.tensorboard else None

        def say(step: int, loss: float) -> None:
            if (step + 1) % 50 == 0:
                print(f"step {step + 1} of {wanted.steps}: loss {loss:.3f}", flush=True)
            if log is not None:
                log.step(step, loss)

        with joined(device, args.fsdp) as (processes, device):
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
    if log is not None:
        log.close(result)
    print(
        f"accuracy {result.accuracy:.3f}; frames shuffled {result.shuffled_accuracy:.3f}, reversed "
        f"{result.reversed_accuracy:.3f}; {result.parameters} parameters; {folder}"
    )
    return EXIT_OK


def run_of(args: argparse.Namespace) -> Run:
    """The run that is asked for. Raises TypeError or ValueError for what makes no sense."""
    from .engine import Run

    values = {} if args.config is None else _read(args.config, [field.name for field in fields(Run)])
    values |= {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    for field in fields(Run):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise ValueError(f"--{field.name}: expected one, or a configuration that has it, got none")
    options = {name: getattr(args, name) for name in _OF_VIDEOS if getattr(args, name) is not None}
    if options and values["task"] != "videos":
        raise ValueError(
            f"--{next(iter(options)).replace('_', '-')}: expected with --task videos, got another"
        )
    if "size" in options:
        options["size"] = [args.size, args.size]
    values["task_options"] = {**values.get("task_options", {}), **options}
    if values["task"] == "videos" and "root" not in values["task_options"]:
        raise ValueError("--root: expected the folder of the videos, got none")
    return Run(**values)


def _read(file: Path, names: list[str]) -> dict[str, Any]:
    """A configuration: a mapping with some of these names."""
    from convgru_fused.yaml_files import read_yaml

    values = read_yaml(file, "a configuration")
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected fields of a run and their values, got {type(values).__name__}")
    for name in values:
        if name not in names:
            raise ValueError(f"{file}: expected fields among {', '.join(names)}, got {name!r}")
    return values


class _Log:
    """What TensorBoard shows; what a stopped run has logged beyond its checkpoint is replaced."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self.run = folder, run
        self.writer: Any = None

    def step(self, step: int, loss: float) -> None:
        self._open(step)
        self.writer.add_scalar("loss", loss, step)
        self.writer.add_scalar("learning rate", self.run.rate(step), step)

    def close(self, result: Result) -> None:
        self._open(self.run.steps)
        for name in ("accuracy", "shuffled_accuracy", "reversed_accuracy"):
            self.writer.add_scalar(name.replace("_", " "), getattr(result, name), self.run.steps)
        self.writer.close()

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            self.writer = SummaryWriter(self.folder, purge_step=step)
