"""Tiles that were measured: once for a device, kernel, type and shape, and remembered on disk. Asked for by
the environment variable CONVGRU_FUSED_AUTOTUNE=1; CONVGRU_FUSED_CACHE names the folder, by default
~/.cache/convgru_fused."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from ..files import replace_file
from .tiles import Tile

SWITCH, FOLDER = "CONVGRU_FUSED_AUTOTUNE", "CONVGRU_FUSED_CACHE"


def enabled() -> bool:
    return os.environ.get(SWITCH) == "1"


def _file() -> Path:
    folder = os.environ.get(FOLDER)
    return (Path(folder) if folder else Path.home() / ".cache" / "convgru_fused") / "triton_tiles.json"


_found: dict[tuple[Path, str], Tile] = {}


def _read(file: Path) -> dict[str, Tile]:
    """What is remembered; nothing, with a warning, if the file is not ours to understand."""
    try:
        return {key: Tile(**tile) for key, tile in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{file}: tiles are measured again: {error}", stacklevel=2)
        return {}


def _write(file: Path, tiles: dict[str, Tile]) -> None:
    text = json.dumps({key: asdict(tile) for key, tile in sorted(tiles.items())}, indent=1)
    try:
        replace_file(file, lambda part: part.write_text(text))
    except OSError as error:
        warnings.warn(f"{file}: cannot remember tiles: {error}", stacklevel=2)


def best(key: str, candidates: Iterable[Tile], seconds: Callable[[Tile], float]) -> Tile:
    """The tile that is remembered for the key, else the fastest of the candidates, of which `seconds` tells
    how long each takes: infinitely, if it does not run. The first of them if none does.

    key: device, versions and shape, but not the batch size: results must not depend on it.
    """
    file = _file()
    known = _found.get((file, key))
    if known is not None:
        return known
    tiles = _read(file)
    if key not in tiles:
        candidates = list(candidates)
        times = [seconds(tile) for tile in candidates]
        tile = candidates[times.index(min(times))]
        if math.isinf(min(times)):
            return tile
        tiles = {**_read(file), key: tile}  # others may have measured meanwhile
        _write(file, tiles)
    _found[file, key] = tiles[key]
    return tiles[key]
