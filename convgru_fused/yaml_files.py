"""Configurations in YAML, for which an extra is needed: import this only where one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(file: Path, what: str) -> Any:
    """What a file has. Raises ValueError naming it, and what it is to be, if it cannot be read."""
    try:
        return yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: expected {what} in YAML, got: {error}") from None
