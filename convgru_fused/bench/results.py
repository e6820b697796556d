"""Benchmark results on disk: one JSON document, rewritten after every row; docs/benchmarks.md describes
it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..files import replace_file
from .check import Error
from .workloads import MODES, Workload

SCHEMA = "convgru_fused.bench/1"

OK, WRONG, FAILED, NOT_APPLICABLE = "ok", "wrong", "failed", "not applicable"
STATUSES = (OK, WRONG, FAILED, NOT_APPLICABLE)


@dataclass(frozen=True)
class Record:
    """What one contender did in one mode of one workload. Times in seconds; None where nothing was
    measured."""

    workload: str
    mode: str
    contender: str
    is_ours: bool
    status: str
    note: str = ""  # why, if the status is not "ok"
    detail: str = ""  # which formulation of the contender it was
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    repetitions: int | None = None
    ms_per_step: float | None = None
    gflops: float | None = None  # by the direct convolution's count
    round_trip_ns: float | None = None  # between two threads, at that time
    kept_bytes: int | None = None
    peak_bytes: int | None = None
    compile_seconds: float | None = None
    errors: dict[str, Error] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.workload, self.mode, self.contender


@dataclass
class Video:
    """The main job on one video: the clip, what it cost to prepare, and its records."""

    path: str
    frames: int  # in the file
    width: int  # of the file, in pixels
    height: int
    frames_per_second: float | None
    clips: int  # taken from it
    frames_per_clip: int
    clip_starts: list[int]
    vgg_weights: str | None  # file, or None for random ones
    decode_seconds: float  # for the whole file
    feature_seconds: float  # of VGG-16, for all clips
    rows: list[Record] = field(default_factory=list)


@dataclass
class Document:
    """Everything one run of the benchmark found. `rows` and `lengths` grow while it runs; `finished` is set
    last."""

    machine: dict[str, Any]
    ceilings: dict[str, float]  # gflops, gbytes_per_s
    settings: dict[str, Any]
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Record] = field(default_factory=list)
    lengths: list[Record] = field(default_factory=list)
    models: list[Record] = field(default_factory=list)  # whole models, fused and as they are
    video: Video | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    finished: bool = False

    def records(self) -> Iterator[Record]:
        """All records, in the order in which they are measured."""
        yield from self.video.rows if self.video else ()
        yield from self.rows
        yield from self.lengths
        yield from self.models

    def only(self, names: Sequence[str]) -> Document:
        """What it says of some workloads. Raises ValueError if it says nothing of one of them."""
        found = {record.workload for record in (*self.rows, *self.models)}
        for name in names:
            if name not in found:
                raise ValueError(f"--rows: expected some of {', '.join(sorted(found))}, got {name!r}")
        rows, models = (
            [record for record in records if record.workload.partition("[")[0] in names]
            for records in (self.rows, self.models)
        )
        return replace(self, rows=rows, models=models, lengths=[], video=None)

    def add_workload(self, workload: Workload, batch: int, itemsize: int) -> None:
        """Notes the sizes, work and traffic of a workload, by its name."""
        self.workloads[workload.name] = {
            "source": workload.source,
            "form": workload.form,
            "T": workload.steps,
            "N": batch,
            "C": workload.input_size,
            "K": workload.hidden_size,
            "H": workload.height,
            "W": workload.width,
            "kernels": [list(kernel) for kernel in workload.kernels],
            "flops": {mode: workload.flops(mode, batch) for mode in MODES},
            "bytes_floor": {mode: workload.bytes_floor(mode, batch, itemsize) for mode in MODES},
        }

    def save(self, path: Path) -> None:
        """Writes the document in one step: a reader, or the next run, sees all of it or the one before."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"
        replace_file(path, lambda part: part.write_text(text))


def load(path: Path) -> Document:
    """Reads a document. Raises ValueError naming the file, what was expected and what was found."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: expected a benchmark result, got {error.strerror or error}") from None
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    if found.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA!r}, got {found.get('schema')!r}")
    found.setdefault("models", [])  # older documents have none
    kinds = {
        "machine": dict, "ceilings": dict, "settings": dict, "workloads": dict, "rows": list, "lengths": list,
        "models": list,
        "video": (dict, type(None)), "created": str, "finished": bool,
    }  # fmt: skip
    for name, kind in kinds.items():
        _expect(path, found, name, kind)
    found = {name: found[name] for name in kinds}
    found["settings"].setdefault("precision", "fast")  # older documents do not say
    for name in ("rows", "lengths", "models"):
        found[name] = records(path, found[name], name)
    if found["video"] is not None:
        for item in fields(Video):
            _expect(path, found["video"], item.name, _TYPES[str(item.type)], "video.")
        video = {item.name: found["video"][item.name] for item in fields(Video)}
        found["video"] = Video(**{**video, "rows": records(path, video["rows"], "video.rows")})
    return Document(**found)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "str | None": (str, type(None)),
    "bool": bool,
    "int": int,
    "float": (float, int),
    "list[int]": list,
    "list[Record]": list,
    "float | None": (float, int, type(None)),
    "int | None": (int, type(None)),
    "dict[str, Error]": dict,
}


def records(path: Path, rows: Iterable[Any], where: str) -> list[Record]:
    """Records from their JSON form. Raises ValueError as `load` does."""
    found = []
    for index, row in enumerate(rows):
        place = f"{where}[{index}]."
        if not isinstance(row, dict):
            raise ValueError(f"{path}: expected {place[:-1]} to be an object, got {type(row).__name__}")
        for item in fields(Record):
            _expect(path, row, item.name, _TYPES[str(item.type)], place)
        if row["status"] not in STATUSES:
            raise ValueError(f"{path}: expected {place}status to be one of {STATUSES}, got {row['status']!r}")
        values = {item.name: row[item.name] for item in fields(Record)}
        try:
            values["errors"] = {name: Error(**error) for name, error in row["errors"].items()}
        except TypeError as error:
            raise ValueError(f"{path}: expected {place}errors to be errors by tensor, got {error}") from None
        found.append(Record(**values))
    return found


def _expect(path: Path, found: dict[str, Any], name: str, kind: Any, place: str = "") -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
    if name not in found:
        raise ValueError(f"{path}: expected {place}{name} ({names}), found no such field")
    if not isinstance(found[name], kinds):
        raise ValueError(f"{path}: expected {place}{name} to be {names}, got {found[name]!r}")
