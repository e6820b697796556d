"""The main job on a real clip: GRU-RCN over the VGG-16 features of a video, eager and fused.

The features are computed once. The five recurrent layers are then five workloads like all others, measured by
the same code: one clip a call, rotating over the clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from convgru_fused.models.vgg import vgg16

from .check import Referee
from .clips import FRAMES, Clips
from .contenders import our_contenders
from .measure import Say, Settings, check, measure_workload
from .program import Job
from .results import OK, Document, Record, Video
from .timing import synchronize
from .workloads import WORKLOADS, CellWeights, Inputs, Workload

LAYERS = ("pool2", "pool3", "pool4", "pool5", "fc7")


def layer_workload(name: str, source: str) -> Workload:
    """The GRU-RCN layer on that feature map, for one clip at a time."""
    return replace(
        WORKLOADS[f"gru_rcn_{name}"], name=f"video_{name}", source=source, batch_cpu=1, batch_gpu=1
    )


def measure_video(
    clips: Clips,
    settings: Settings,
    vgg_weights: Path | None,
    document: Document,
    done: Callable[[], None] = lambda: None,
    say: Say = lambda line: None,
) -> None:
    """Runs the job and puts what it finds into the document; calls done after each layer and mode.

    Raises ValueError for a weights file that cannot be used. A disagreement between contenders raises
    nothing: its records say so.
    """
    say("VGG-16 features")
    model = vgg16(vgg_weights, settings.seed).to(settings.device)
    start = perf_counter()
    maps = features(model, clips, settings.device)
    synchronize(settings.device)
    document.video = Video(
        path=clips.path.name,
        frames=clips.total_frames,
        width=clips.width,
        height=clips.height,
        frames_per_second=clips.frames_per_second,
        clips=len(clips.starts),
        frames_per_clip=FRAMES,
        clip_starts=list(clips.starts),
        vgg_weights=None if vgg_weights is None else str(vgg_weights),
        decode_seconds=clips.decode_seconds,
        feature_seconds=perf_counter() - start,
    )
    for name in LAYERS:
        workload = layer_workload(name, f"GRU-RCN on {name} of {clips.path.name}")
        document.add_workload(workload, 1, settings.dtype.itemsize)
        sets = layer_inputs(workload, maps[name].to(settings.dtype), settings)
        wrong = dict(_wrong_clips(workload, settings, sets, say))
        for records in measure_workload(workload, settings, settings.contenders(), say, sets):
            document.video.rows += [
                _refused(record, wrong[record.contender]) if record.contender in wrong else record
                for record in records
            ]
            done()


@torch.inference_mode()
def features(model: torch.nn.Module, clips: Clips, device: torch.device) -> dict[str, Tensor]:
    """The maps of every frame by layer, (clips,FRAMES,C,H,W) in float32; clip by clip to bound the memory."""
    maps = [model(clip.to(device)) for clip in clips.frames]
    return {name: torch.stack([clip[name] for clip in maps]) for name in LAYERS}


def layer_inputs(workload: Workload, maps: Tensor, settings: Settings) -> tuple[Inputs, ...]:
    """One set of data for each clip: its features, a zero initial state, seeded weights.

    The input weights are divided by the features' rms, which depends on the layer and on the VGG's weights:
    gates that are all saturated would hide errors.
    """
    drawn = workload.make_inputs(settings.device, settings.dtype, settings.seed)
    scale = maps.float().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    weights = tuple(
        CellWeights(cell.weight_ih / scale.to(cell.weight_ih), *cell[1:]) for cell in drawn.weights
    )
    shared = replace(drawn, hx=torch.zeros_like(drawn.hx), weights=weights)
    return tuple(replace(shared, x=clip.clone()[:, None]) for clip in maps)


def _wrong_clips(
    workload: Workload, settings: Settings, sets: tuple[Inputs, ...], say: Say
) -> Iterator[tuple[str, Record]]:
    """Those of ours that get the states of a later clip wrong (the first one's gradients are checked too)."""
    for index, inputs in enumerate(sets[1:], 2):
        say(f"{workload.name}: checking clip {index}")
        job = Job(workload, "forward", settings.variant, (inputs,))
        referee = Referee(job, ("forward",), settings.tf32)
        for contender in our_contenders(settings.backends):
            record, _ = check(job, referee, contender)
            if record.status != OK:
                yield contender.name, replace(record, note=f"clip {index}: {record.note}")


def _refused(record: Record, reason: Record) -> Record:
    """The record without its times, because of what went wrong elsewhere."""
    return replace(reason, mode=record.mode, detail=record.detail)
