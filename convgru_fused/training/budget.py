"""Networks of different families with as many parameters as each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .catalogue import FAMILIES

TOLERANCE = 0.1  # of the budget
_NARROWEST, _WIDEST = 1 / 16, 16.0


def parameters_of(
    family: str, num_classes: int, frame_shape: Sequence[int], width: float, **options: Any
) -> int:
    """How many parameters a network of that family and width trains."""
    model = FAMILIES[family](num_classes, tuple(frame_shape), width=width, **options)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def width_for(
    family: str, num_classes: int, frame_shape: Sequence[int], budget: int, **options: Any
) -> float:
    """The width, to three decimals, with which a family's small network has `budget` parameters or as near to
    that as whole channels allow.

    Raises ValueError if that is further off than a tenth.
    """
    low, high = _NARROWEST, _WIDEST
    while high - low > 5e-4:  # the number grows with the width, in jumps
        middle = (low + high) / 2
        if parameters_of(family, num_classes, frame_shape, middle, **options) < budget:
            low = middle
        else:
            high = middle
    found = {
        width: parameters_of(family, num_classes, frame_shape, width, **options)
        for width in (round(low, 3), round(high, 3))
    }
    width = min(found, key=lambda width: abs(found[width] - budget))
    if abs(found[width] - budget) > TOLERANCE * budget:
        raise ValueError(
            f"budget: expected a number of parameters that {family} can have, got {budget}; the nearest is "
            f"{found[width]}"
        )
    return width
