"""How much rounding error fp32 on the CPU may trade for speed."""

from __future__ import annotations

import os
from typing import Any

import torch

from .checks import check_choice

ENVIRONMENT_VARIABLE = "CONVGRU_FUSED_PRECISION"
SETTINGS = ("fast", "strict")


class _State:
    """The setting in force; process-wide, like the flags of torch.backends."""

    setting = check_choice(
        f"environment variable {ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE, "fast"), SETTINGS
    )


class precision:
    """Sets what fp32 convolutions on the CPU may do; as a context manager, until the end of the block.

    Args:
        setting: "fast" (the default) allows Winograd's algorithm, which does up to four times fewer
            multiplications and rounds more: at T=50 the error against float64, of the states and of every
            gradient, is at most 16 times (largest) and 8 times (rms) that of PyTorch's own fp32 convolutions.
            "strict" allows only what rounds like the direct sum (Winograd's algorithm with two outputs a tile
            among it): 2.5 times and twice. PyTorch's own error depends on the memory format, by more than
            that; these are multiples of it in channels last.

    Raises:
        ValueError: another setting.

    The environment variable CONVGRU_FUSED_PRECISION gives the setting at import. Other dtypes and devices are
    not affected; torch's own switches (TF32, float32_matmul_precision) hold for what PyTorch's kernels
    compute.
    """

    def __init__(self, setting: str) -> None:
        self._setting = check_choice("setting", setting, SETTINGS)
        self._before = [_State.setting]
        self._entered = 0
        _State.setting = self._setting

    def __enter__(self) -> precision:
        self._entered += 1
        if self._entered > 1:  # the first block begins when the object is made
            self._before.append(_State.setting)
            _State.setting = self._setting
        return self

    def __exit__(self, *exception: object) -> None:
        _State.setting = self._before.pop()


def setting() -> str:
    """The setting in force."""
    return _State.setting


def is_fast() -> bool:
    """Whether the setting in force is "fast"."""
    return setting() == "fast"


def allows_fast(device_type: str) -> bool:
    """Whether fp32 may be rounded more than its own arithmetic does: on a CPU by this setting, on a GPU by
    torch's own switch for TF32 in convolutions."""
    if device_type != "cuda":
        return is_fast()
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return conv.fp32_precision == "tf32"
