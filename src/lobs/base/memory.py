"""How much memory there is: the ceiling on what is held at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lobs.base.arguments import check_number

PROCESS, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Share of the memory that is available now which a ceiling leaves to everything else.
MARGIN = 0.25


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that new tensors on a device can take now.

    Args:
        device: a GPU's own memory counts, else the machine's: what is free, and what caches of files would give up; or
            what a container (control groups, both versions) or ``ulimit`` (``-v``, ``-d``) leaves, where that is less.

    Returns:
        Bytes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _kibibytes(PROCESS / "meminfo", "MemAvailable")
    if free is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_by_containers(), *_left_by_ulimit()]))


def _kibibytes(file: Path, field: str) -> int | None:
    """A line ``field: 123 kB`` of the kernel's, in bytes; None where it has none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _left_by_containers() -> Iterator[int]:
    """What the process's control group and those around it leave."""
    groups = PROCESS / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and all((folder / name).exists() for name in names):
                limit, used = ((folder / name).read_text().strip() for name in names)
                if limit.isdigit():  # else "max"
                    yield int(limit) - int(used) + _file_cache(folder / "memory.stat")


def _file_cache(statistics: Path) -> int:
    """What a control group counts as used and would give up."""
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    sizes = dict(line.split() for line in lines)
    return int(sizes.get("total_inactive_file", sizes.get("inactive_file", 0)))


def _left_by_ulimit() -> Iterator[int]:
    """What the limits on the process's address space and data leave."""
    import resource

    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - (_kibibytes(PROCESS / "self" / "status", field) or 0)


def ceiling(memory: float | None, device: torch.device | str = "cpu") -> int:
    """The ceiling in bytes that an argument ``memory`` asks for.

    Args:
        memory: bytes; None: what is available on the device now, less `MARGIN` of it.
        device: where the tensors will be.

    Returns:
        Bytes.

    Raises:
        ValueError: the number is not positive.
    """
    if memory is None:
        return int((1 - MARGIN) * available_bytes(device))
    check_ceiling(memory)
    return int(memory)


def check_ceiling(memory: float | None) -> None:
    """Refuse a ceiling that is not positive.

    Raises:
        ValueError: it is not, or not finite.
        TypeError: it is no number.
    """
    check_number("memory", memory, "a ceiling in bytes")
    if memory is not None and not 0 < memory < float("inf"):
        raise ValueError(f"memory is a ceiling in bytes, above 0, or None for what the machine has; got {memory}")
