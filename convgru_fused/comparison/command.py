"""`python -m convgru_fused compare`."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from convgru_fused.checks import check_device, check_int, check_number

if TYPE_CHECKING:
    from convgru_fused.training.engine import Result, Run

    from .document import Document
    from .plan import Plan

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
RECORDS, REPORT = "comparison.json", "comparison.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", metavar="NAME", help="quick or standard")
    what.add_argument("--config", type=Path, metavar="FILE", help="a plan in YAML, as the presets are")
    what.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="run nothing: the report of an earlier comparison's records",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for runs, records and report (default: runs/compare-..., with --records its folder)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at a time (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="begin no run after so many; the same command goes on later",
    )


def run(args: argparse.Namespace) -> int:
    try:
        from convgru_fused.bench.tables import console

        from .document import Document
        from .plan import plan_file, read
        from .report import show, write
    except ModuleNotFoundError as error:
        print(f"error: no {error.name}: pip install 'convgru_fused[compare]'", file=sys.stderr)
        return EXIT_USAGE
    failed: dict[str, str] = {}
    try:
        if args.records is not None:
            document = Document.load(args.records)
            folder = args.out or args.records.parent
        else:
            check_int("--jobs", args.jobs)
            check_device("--device", args.device)
            if args.minutes is not None:
                check_number("--minutes", args.minutes, 0)
            file = args.config or plan_file(args.preset)
            folder = args.out or Path("runs") / f"compare-{file.stem}"
            plan = read(file)
            folder.mkdir(parents=True, exist_ok=True)
            document, failed = _compare(plan, folder, args)
            document.save(folder / RECORDS)
    except (TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RuntimeError as error:
        print(f"error: {error}; the same command goes on", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    write(document, folder / REPORT)
    show(document, console())
    print(f"report: {folder / REPORT}")
    for name, message in failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_OK


def _compare(plan: Plan, folder: Path, args: argparse.Namespace) -> tuple[Document, dict[str, str]]:
    """Runs what is not there yet. Returns all that is there then, and what went wrong by the name of its
    run."""
    import torch

    from convgru_fused.bench.machine import describe

    from .document import Document, thinned
    from .execution import differences, execute, recorded, time_fused

    before = Document.load(folder / RECORDS) if (folder / RECORDS).exists() else None
    continued = before if before is not None and before.plan == plan else None
    if continued is not None:
        fused = continued.fused
    else:  # alone on the machine, so before everything else
        first = [run for run in plan.runs if run.family == "grurcn" and run.seed == 0]
        fused = [time_fused(run, args.device) for run in first]
    earlier = {} if before is None else {result.run.name: result for result in before.results}

    def result_of(run: Run) -> Result | None:
        """From the run's folder, or from the records."""
        if (result := recorded(run, folder)) is not None:
            return result
        result = earlier.get(run.name)
        return None if result is None or differences(result.run, run) else result

    missing = [run for run in plan.runs if result_of(run) is None]
    if continued is not None and not missing and len(earlier) == len(plan.runs):
        return continued, {}
    done = len(plan.runs) - len(missing)
    if done:
        print(f"{done} of {len(plan.runs)} runs are there")

    def say(run: Run, result: Result) -> None:
        nonlocal done
        done += 1
        line = f"{done} of {len(plan.runs)}: {run.name} {result.accuracy:.3f}, {result.seconds:.0f} s"
        print(line, flush=True)

    failed: dict[str, str] = {}
    if missing:
        failed = execute(
            missing,
            folder,
            jobs=args.jobs,
            device=args.device,
            threads=max(1, torch.get_num_threads() // args.jobs),
            seconds=None if args.minutes is None else 60 * args.minutes,
            on_result=say,
        )
    results = [thinned(result) for result in map(result_of, plan.runs) if result is not None]
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Document(plan, describe(torch.device(args.device)), created, fused, results), failed
