"""What a stage takes: wall time and memory."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Wall time and peak memory of a stage, and its machine, for `timings.json`: the only file that may hold them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.layers: dict[str, float] = {}

    def each(self, names: Iterable[str]) -> Iterator[str]:
        """The names, one after the other, while noting what is spent on each."""
        for name in names:
            start = time.perf_counter()
            yield name
            self.layers[name] = self.layers.get(name, 0.0) + time.perf_counter() - start

    def result(self, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Seconds in all and per layer, peak memory, and what they and the results' last digits depend on."""
        return {
            "total": round(time.perf_counter() - self._start, 3),
            "layers": {name: round(seconds, 4) for name, seconds in self.layers.items()},
            "peak_memory_mib": peak_memory_mib(),
            "threads": config["threads"],
            "device": str(device),
            **machine(device),
        }


def machine(device: torch.device) -> dict[str, Any]:
    """What the last digits of a result depend on beside the threads.

    Args:
        device: where was computed.

    Returns:
        ``processor`` (and of a GPU its name), ``instructions`` (the widest that PyTorch's kernels use), ``versions``.
    """
    import torch

    from lobs import __version__

    processor, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = next(iter(names), processor)
    versions = {name: version(name) for name in ("torch", "numpy", "numba")}
    return {
        "processor": processor,
        **({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {"lobs": __version__, "python": platform.python_version(), **versions},
    }


def peak_memory_mib() -> float:
    """The process's largest resident set so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a new program inherits from the process that started it.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if peaks:
            return round(int(peaks[0]) / 1024, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
