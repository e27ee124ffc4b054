"""What a stage computes with: threads, seeds, the device, the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def prepare(config: Mapping[str, Any]) -> torch.device:
    """Fix the number of threads and the seeds, and choose the device.

    Returns:
        Where to compute.

    Raises:
        ValueError: CUDA is asked for where there is none.
    """
    import torch

    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])
    if config["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is not accepted here: this machine has no CUDA device; use auto or cpu")
    return torch.device("cuda" if config["device"] != "cpu" and torch.cuda.is_available() else "cpu")


def ceiling_bytes(config: Mapping[str, Any]) -> float | None:
    """Key `memory`, GiB, in bytes; None: what the machine has."""
    return None if config["memory"] is None else config["memory"] * 2**30
