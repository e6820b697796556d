"""From command-line options to what will be done. Everything that can be wrong with a request is found here,
before any work: ValueError and TypeError say what was expected and what came."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import numerics
from ..checks import check_device
from ..models.vgg import check_weights
from . import contenders, ours, timing
from .clips import Clips, default_video, read_clips
from .contenders import Contender
from .measure import Settings
from .workloads import LENGTHS, MODELS, MODES, QUICK, WORKLOADS, Workload, select

FOLDER = Path("bench-results")


@dataclass(frozen=True)
class Plan:
    """A checked request."""

    settings: Settings
    contenders: tuple[Contender, ...]
    workloads: tuple[Workload, ...]
    models: tuple[str, ...]  # whole models
    lengths: tuple[int, ...]  # the T at which to measure the cost against T
    clips: Clips | None  # of the video, decoded
    video_settings: Settings
    vgg_weights: Path | None
    threads: int | None
    json: Path
    plots: Path

    def plain_settings(self) -> dict[str, Any]:
        """The settings as they stand in a results document."""
        settings = self.settings
        return {
            "dtype": str(settings.dtype).removeprefix("torch."),
            "tf32": settings.tf32,
            "precision": settings.precision,
            "variant": settings.variant,
            "modes": list(settings.modes),
            "peers": list(settings.peers),
            "backends": list(settings.backends),
            "recompute": settings.recompute,
            "in_graphs": settings.in_graphs,
            "repetitions": settings.protocol.repetitions,
            "seconds": settings.protocol.seconds,
            "seed": settings.seed,
        }


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for parsed arguments."""
    settings = _settings(args)
    chosen = settings.contenders()
    for backend in settings.backends:
        ours.probe(backend, settings.device, settings.dtype, settings.variant)
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {args.threads}")
    if args.vgg_weights is not None:
        check_weights(args.vgg_weights)
    suites = {"quick": QUICK, "full": (*WORKLOADS, *MODELS), "none": ()}
    names = suites[args.suite] if args.rows is None else args.rows
    workloads = select([name for name in names if name not in MODELS])
    models = tuple(name for name in names if name in MODELS)
    if not workloads and not models and args.video == "none":
        raise ValueError("nothing to run: expected a suite, rows or a video, got none of them")
    clips = None
    if args.video != "none":
        clips = read_clips(default_video() if args.video == "default" else Path(args.video), args.clips)
    video_peers = tuple(p for p in ("naive", "eager") if p == "eager" or p in (args.peers or ()))
    return Plan(
        settings=settings,
        contenders=chosen,
        workloads=workloads,
        models=models,
        lengths=LENGTHS.get(args.suite, ()) if args.rows is None else (),
        clips=clips,
        video_settings=replace(settings, peers=video_peers, recompute=False, in_graphs=False),
        vgg_weights=args.vgg_weights,
        threads=args.threads,
        json=args.json or FOLDER / "bench.json",
        plots=args.plots or FOLDER,
    )


def _settings(args: argparse.Namespace) -> Settings:
    full = args.suite == "full"
    protocol = timing.FULL if full else timing.QUICK
    if args.repetitions is not None:
        minimum = min(protocol.minimum, args.repetitions)
        protocol = replace(protocol, repetitions=args.repetitions, minimum=minimum)
    peers = args.peers
    if peers is None:
        peers = tuple(contenders.PEERS) if full else contenders.QUICK_PEERS
    return Settings(
        device=check_device("--device", args.device),
        dtype=getattr(torch, args.dtype),
        variant=args.variant,
        modes=MODES if args.mode == "both" else (args.mode,),
        peers=peers,
        backends=args.backend,
        recompute=args.recompute,
        in_graphs=args.graphs,
        protocol=protocol,
        tf32=args.tf32,
        precision=args.precision or numerics.setting(),
    )
