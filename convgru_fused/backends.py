"""The backends, what each can run, and how one is chosen.

A backend answers one question, `unsupported_reasons(problem)`: quietly when the library chooses, as the text
of the error when the user insisted on that backend. The choice is, in this order: `use_backend`, the
environment variable CONVGRU_FUSED_BACKEND (read when the package is imported), else the first backend of
`BACKENDS` that can run the problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import eager, ops
from .checks import check_choice

ENVIRONMENT_VARIABLE = "CONVGRU_FUSED_BACKEND"


@dataclass(frozen=True)
class Problem:
    """What is asked of a backend, as far as it decides whether the backend can do it. Sizes are left out on
    purpose: a choice that depended on T or H would make torch.compile compile again for each of them."""

    device_type: str
    dtype: torch.dtype
    variant: str
    forward_ad: bool  # forward-mode differentiation is under way


@dataclass(frozen=True)
class Backend:
    """One way to run `eager.conv_gru`: the same arguments plus save_gates, the same result."""

    name: str
    description: str
    missing: Callable[[], str]  # why this backend cannot be used in this installation, or ""
    refused: Callable[[Problem], list[str]]  # why it cannot run this problem
    conv_gru: Callable[..., Tensor]

    def unsupported_reasons(self, problem: Problem) -> list[str]:
        missing = self.missing()
        return [missing] if missing else self.refused(problem)


def _eager_conv_gru(*args: Any, save_gates: bool) -> Tensor:
    del save_gates  # autograd keeps what it wants
    device_type = args[3].device.type  # weight_hh's
    if not ops.autocast_enabled(device_type):
        return eager.conv_gru(*args)
    with torch.autocast(device_type, enabled=False):
        return eager.conv_gru(*ops.autocast(args, device_type))


def _native_refused(device_type: str, dtypes: tuple[torch.dtype, ...], problem: Problem) -> list[str]:
    reasons = []
    if problem.device_type != device_type:
        reasons.append(f"runs on {device_type} tensors, got {problem.device_type}")
    if problem.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        reasons.append(f"supports {names}, got {str(problem.dtype).removeprefix('torch.')}")
    if problem.forward_ad:
        reasons.append("has no forward-mode derivative")
    return reasons


_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _triton_refused(problem: Problem) -> list[str]:
    # bfloat16 arithmetic in Triton's interpreter is wrong.
    dtypes = (torch.float32, torch.float16, *(() if ops.triton_interprets() else (torch.bfloat16,)))
    return _native_refused("cpu" if ops.triton_interprets() else "cuda", dtypes, problem)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="cpu",
            description="native C++, one operator for a whole sequence",
            missing=lambda: ops.missing_reason,
            refused=lambda problem: _native_refused("cpu", _NATIVE_DTYPES, problem),
            conv_gru=ops.NATIVE.conv_gru,
        ),
        Backend(
            name="cuda",
            description="native C++ and CUDA, one operator for a whole sequence",
            missing=lambda: ops.missing_on_gpu,
            refused=lambda problem: _native_refused("cuda", _NATIVE_DTYPES, problem),
            conv_gru=ops.NATIVE.conv_gru,
        ),
        Backend(
            name="eager",
            description="plain PyTorch, differentiated by autograd; the reference",
            missing=lambda: "",
            refused=lambda problem: [],
            conv_gru=_eager_conv_gru,
        ),
        # Behind the one that can run everything, so on request only: where both were timed, on an H100, the
        # backend "cuda" is faster (docs/triton.md).
        Backend(
            name="triton",
            description="Triton kernels, one operator for a whole sequence; on request",
            missing=ops.triton_missing,
            refused=_triton_refused,
            conv_gru=ops.TRITON.conv_gru,
        ),
    )
}
"""Every backend, in the order in which they are tried."""


class _Selection:
    """The backend the user named, or None. Process-wide, like the flags of torch.backends."""

    name: str | None = None
    blocks: ClassVar[list[_Block]] = []  # of `use_backend`, that threads may leave in another order


class _Block:
    """One `with use_backend(name)`."""

    def __init__(self, name: str) -> None:
        self.name = name


_selection = _Selection()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run everything inside the `with` block on one backend; there is no silent fallback from it.

    Args:
        name: "eager", "cpu", "cuda" or "triton"; see `backends()`.

    Raises:
        ValueError: `name` is not a backend, or this installation lacks it. A problem that it cannot run
            raises ValueError at the call, with the reasons.

    The setting is process-wide: threads that run at the same time share it.
    """
    backend = BACKENDS[check_choice("name", name, BACKENDS)]
    if backend.missing():
        raise ValueError(f"name: backend {name!r} is not available: {backend.missing()}")
    block = _Block(name)
    _selection.blocks.append(block)
    _selection.name = name
    try:
        yield
    finally:
        _selection.blocks.remove(block)
        _selection.name = _selection.blocks[-1].name if _selection.blocks else _default


def selected() -> str | None:
    """The backend that the user named."""
    return _selection.name


def choose(problem: Problem) -> Backend:
    """The backend that runs `problem`. Raises ValueError with every reason if there is none."""
    if _selection.name is not None:
        backend = BACKENDS[_selection.name]
        reasons = backend.unsupported_reasons(problem)
        if reasons:
            raise ValueError(f"backend {backend.name!r} cannot run {problem}: {'; '.join(reasons)}")
        return backend
    for backend in BACKENDS.values():
        if not backend.unsupported_reasons(problem):
            return backend
    lines = [f"  {b.name}: {'; '.join(b.unsupported_reasons(problem))}" for b in BACKENDS.values()]
    raise ValueError("\n".join([f"no backend can run {problem}", *lines]))


@dataclass(frozen=True)
class BackendStatus:
    """One row of the table of `backends()`."""

    name: str
    available: bool
    reason: str  # what it is if available, else why not


class BackendTable(tuple[BackendStatus, ...]):
    """The rows of `backends()`; as text, a table."""

    def __str__(self) -> str:
        width = max(len(row.name) for row in self)
        return "\n".join(
            f"{row.name:{width}}  {'yes' if row.available else 'no ':3}  {row.reason}" for row in self
        )


def backends() -> BackendTable:
    """Every backend of this version: whether this installation has it, and why not. As text, a table."""
    rows = []
    for backend in BACKENDS.values():
        missing = backend.missing()
        rows.append(BackendStatus(backend.name, not missing, missing or backend.description))
    return BackendTable(rows)


_default: str | None = None  # outside of all blocks
if ENVIRONMENT_VARIABLE in os.environ:
    _default = _selection.name = check_choice(
        f"environment variable {ENVIRONMENT_VARIABLE}", os.environ[ENVIRONMENT_VARIABLE], BACKENDS
    )
