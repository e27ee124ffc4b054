"""How much memory there is: the ceiling on what is held at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lobs.base.arguments import check_number

# Share of the memory that is available now which a ceiling leaves to everything else.
MARGIN = 0.25


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that new tensors on a device can take now.

    Args:
        device: a GPU's own memory counts, else the machine's: what is free, and what caches of files would give up.

    Returns:
        Bytes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
