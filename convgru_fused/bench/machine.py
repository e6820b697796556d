"""Where a benchmark ran: processor, device, versions, and the two measured ceilings of the roofline."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .timing import synchronize

# Rows and columns of a matrix that reaches the peak in a moment; bytes well beyond every cache.
_MATRIX = {"cpu": 1536, "cuda": 8192}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, device, threads, versions and commit as JSON-ready values; None for what cannot be found
    out."""
    import convgru_fused

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "convgru_fused": convgru_fused.__version__,
        "commit": _commit(),
        "device": str(device),
        "gpu": _gpu(device) if device.type == "cuda" else None,
    }


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured now: multiply-add peak in GFLOP/s, and copy bandwidth (bytes read and written) in GB/s.

    The peak is that of a matrix product. On a CPU a large direct convolution is tried too, for matrix
    products and convolutions come from different libraries there, and neither is the faster one on every
    processor.
    """
    n = _MATRIX[device.type]
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    peak = 2 * n**3 / _fastest(lambda: torch.mm(a, b), device)
    if device.type == "cpu":
        channels, pixels = 256, 56
        image = torch.randn(1, channels, pixels, pixels, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        operations = 2 * 9 * channels**2 * pixels**2
        peak = max(peak, operations / _fastest(lambda: torch.conv2d(image, weight, padding=1), device))
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / _fastest(lambda: target.copy_(source), device)
    return {"gflops": peak / 1e9, "gbytes_per_s": bandwidth / 1e9}


@torch.inference_mode()
def _fastest(call: Callable[[], object], device: torch.device, calls: int = 8, seconds: float = 1.0) -> float:
    """The shortest of so many calls, or of those that begin within so many seconds."""
    times: list[float] = []
    while len(times) < calls and sum(times) < seconds:
        synchronize(device)
        start = perf_counter()
        call()
        synchronize(device)
        times.append(perf_counter() - start)
    return min(times)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "clocks_mhz": _clocks(device),
    }


def _clocks(device: torch.device) -> dict[str, int] | None:
    """Current and largest clocks of the multiprocessors and the memory, in MHz."""
    names = ("sm", "sm_max", "memory", "memory_max")
    fields = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"
    index = torch.cuda.current_device() if device.index is None else device.index
    query = ["nvidia-smi", f"--id={index}", f"--query-gpu={fields}"]
    answer = _output([*query, "--format=csv,noheader,nounits"])
    try:
        return dict(zip(names, (int(value) for value in (answer or "").split(",")), strict=True))
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package lies in, "+" if it has changes; None for an installed
    package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    if commit is None:
        return None
    changes = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+" if changes else commit


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
