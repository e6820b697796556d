"""`python -m convgru_fused bench`: options, output, exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import numerics

# run() imports what it needs, so that --help is quick and works without the packages for plots.
if TYPE_CHECKING:
    from .plan import Plan
    from .results import Document

_PACKAGES = ("av", "matplotlib", "numpy", "rich")  # of the extra "bench"

EXIT_OK, EXIT_WRONG, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    what = parser.add_argument_group("what to run")
    what.add_argument("--suite", choices=("quick", "full", "none"), default="quick", help="(default: quick)")
    what.add_argument("--rows", type=_names, metavar="A,B", help="these workloads instead of the suite's")
    what.add_argument("--mode", choices=("forward", "train", "both"), default="both", help="(default: both)")
    what.add_argument("--video", default="default", metavar="PATH", help='a video of yours, or "none"')
    what.add_argument("--clips", type=int, default=2, metavar="N", help="clips to take from it (default: 2)")
    what.add_argument("--vgg-weights", type=Path, metavar="FILE", help="state dict of torchvision's vgg16")
    how = parser.add_argument_group("how to run it")
    how.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    how.add_argument("--tf32", action="store_true", help="let float32 on a GPU use TF32")
    how.add_argument(
        "--precision", choices=numerics.SETTINGS, help="of ours in float32 (default: as it is set)"
    )
    how.add_argument("--variant", choices=("gru-rcn", "cudnn"), default="gru-rcn", help="(default: gru-rcn)")
    how.add_argument("--backend", type=_names, default=(), metavar="A,B", help="ours on these backends")
    how.add_argument("--recompute", action="store_true", help="also ours with recompute=True")
    how.add_argument("--graphs", action="store_true", help="also ours in CUDA graphs")
    how.add_argument("--peers", type=_names, metavar="A,B", help="(default: naive,eager,tuned; all in full)")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    how.add_argument("--repetitions", type=int, metavar="N", help="timed calls of each, if time allows")
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, metavar="FILE", help="(default: bench-results/bench.json)")
    out.add_argument("--plots", type=Path, metavar="DIR", help="(default: bench-results)")
    out.add_argument(
        "--show",
        type=Path,
        metavar="FILE",
        help="print a result instead, or its --rows; with --plots, draw it",
    )
    out.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="compare two results instead")


def _names(text: str) -> tuple[str, ...]:
    """A comma-separated list; "none" is an empty one."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"expected names, or none, got {text!r}")
    return () if names == ("none",) else names


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 0; 1 if one of ours was wrong or broke; 2 for a bad
    request, told in one line on standard error; 130 if it was interrupted, after saying what is finished."""
    try:
        if args.compare:
            return _compare(*args.compare)
        if args.show:
            return _show(args.show, args.rows, args.plots)
        from .plan import make_plan

        plan = make_plan(args)
    except (ValueError, TypeError) as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        return _refuse(f"expected the package {error.name!r}, found none: pip install 'convgru_fused[bench]'")
    return _run(plan)


def _refuse(reason: str) -> int:
    print(f"bench: {reason}", file=sys.stderr)
    return EXIT_USAGE


def _compare(a: Path, b: Path) -> int:
    from . import compare_report, results, tables

    compare_report.show(results.load(a), results.load(b), (str(a), str(b)), tables.console())
    return EXIT_OK


def _show(path: Path, rows: Sequence[str] | None, folder: Path | None) -> int:
    from . import plots, report, results, tables

    document = results.load(path)
    if rows is not None:
        document = document.only(rows)
    out = tables.console()
    report.show(document, out)
    if folder is not None:
        out.print(f"plots: {', '.join(map(str, plots.draw_all(document, folder)))}", soft_wrap=True)
    return EXIT_OK


def _run(plan: Plan) -> int:
    from . import plots, report, suite, tables

    plan.plots.mkdir(parents=True, exist_ok=True)  # rather found out now than at the end
    document = suite.start(plan)
    try:
        with report.progress(suite.count_steps(plan)) as bar:
            (task,) = bar.task_ids
            suite.execute(
                plan,
                document,
                say=lambda line: bar.update(task, description=line),
                advance=lambda: bar.advance(task),
            )
    except KeyboardInterrupt:
        return _interrupted(plan, document)
    out = tables.console()
    report.show(document, out)
    written = plots.draw_all(document, plan.plots)
    out.print(f"results: {', '.join(map(str, [plan.json, *written]))}", soft_wrap=True)
    return EXIT_WRONG if report.problems(r for r in document.records() if r.is_ours) else EXIT_OK


def _interrupted(plan: Plan, document: Document) -> int:
    document.save(plan.json)
    finished = list(dict.fromkeys(f"{record.workload} {record.mode}" for record in document.records()))
    what = f"finished and readable: {', '.join(finished)}" if finished else "nothing was finished"
    print(f"bench: interrupted; {what}; results: {plan.json}", file=sys.stderr)
    return EXIT_INTERRUPTED
