"""A made-up run for the tests of the benchmark."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_samples import SEQUENCE, record

from convgru_fused.bench.results import Document, Video


@pytest.fixture
def document() -> Document:
    """A finished run: two modes of one workload, three T, a video."""
    made = Document(
        machine={
            "cpu": "a processor", "cores": 2, "threads": 2, "isa": "AVX2", "system": "an OS",
            "python": "3.11", "torch": "2.13", "triton": None, "convgru_fused": "0.1", "commit": None,
            "device": "cpu", "gpu": None,
        },
        ceilings={"gflops": 100.0, "gbytes_per_s": 10.0},
        settings={"dtype": "float32", "tf32": False, "precision": "fast", "variant": "gru-rcn"},
    )  # fmt: skip
    made.add_workload(SEQUENCE, 2, 4)
    for mode in ("forward", "train"):
        made.rows += [record("fused", 0.010, mode=mode), record("eager", 0.030, mode=mode)]
        made.rows += [record("tuned", 0.020, mode=mode)]
    for steps in (16, 32, 64):
        name = f"long_small[T={steps}]"
        made.add_workload(replace(SEQUENCE, name=name, steps=steps), 2, 4)
        made.lengths += [record("fused", 1e-3 * steps, name), record("eager", 3e-3 * steps, name)]
    made.add_workload(replace(SEQUENCE, name="video_pool2"), 1, 4)
    rows = [record("fused", 0.010, "video_pool2"), record("eager", 0.025, "video_pool2")]
    made.video = Video("a/clip.mp4", 250, 640, 272, 25.0, 3, 10, [0, 120, 240], None, 0.5, 3.0, rows)
    made.finished = True
    return made
