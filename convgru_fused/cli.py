"""The command line: `python -m convgru_fused`, also installed as `convgru-fused`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

from . import plan
from .bench import command
from .comparison import command as compare_command
from .fusing import command as fuse_command
from .training import command as train_command


def info() -> str:
    """Versions, how the extension was built, the machine, and the table of backends."""
    import torch

    from . import __version__, backends

    lines = [
        f"convgru_fused {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"cpu: {torch.get_num_threads()} threads, torch kernels {torch.backends.cpu.get_cpu_capability()}",
    ]
    try:
        from . import _build_info
    except ImportError:
        lines.append("native: not built")
    else:
        lines.append(f"native: built by {_build_info.compiler()}, kernels {_build_info.cpu_capability()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines.append(f"gpu: {gpu}")
    return "\n".join([*lines, "", str(backends())])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="convgru-fused", description="A fused ConvGRU for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "info", help="what is installed and built, which backends can run and why not the others"
    )
    command.add_arguments(
        commands.add_parser(
            "bench", help="the fused ConvGRU against PyTorch, on a real video and on the layers of models"
        )
    )
    plan.add_arguments(
        commands.add_parser(
            "plan", help="which algorithm runs each convolution of a layer on this CPU, and in how many parts"
        )
    )
    fuse_command.add_arguments(
        commands.add_parser("fuse", help="find the ConvGRUs of a model, and say what can be replaced")
    )
    train_command.add_arguments(
        commands.add_parser(
            "train", help="train a video model on a generated task or on videos, or go on with it"
        )
    )
    compare_command.add_arguments(
        commands.add_parser(
            "compare", help="train every family of video models on the same tasks, and report what comes out"
        )
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad arguments and files that cannot be read or
    written, 130 if interrupted; what a command has beside these, it says itself."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except OSError as error:
        print(f"convgru-fused: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("convgru-fused: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.command == "info":
        print(info())
        return 0
    if args.command == "plan":
        try:
            print(plan.run(args))
        except ValueError as error:
            print(f"convgru-fused: {error}", file=sys.stderr)
            return 2
        return 0
    if args.command == "fuse":
        return fuse_command.run(args)
    if args.command == "train":
        return train_command.run(args)
    if args.command == "compare":
        return compare_command.run(args)
    return command.run(args)
