"""What the benchmarks of the solvers share: the layer they work on, the machine's rate, a stop watch."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lobs
from lobs_paper.files import load_tensors, require


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser that knows where a trained network and its statistics lie."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/lenet300/seed0"), help="folder of a finished run")
    parser.add_argument("--layer", default="fc1", help="layer's name")
    return parser


def load_layer(run: Path, layer: str) -> tuple[Tensor, lobs.LayerStatistics]:
    """A layer's trained weight, bias in the last column, and its statistics."""
    made_by = "lobs train && lobs collect"
    state = load_tensors(run / "train" / "model.safetensors", made_by)
    statistics = lobs.Statistics.load(require(run / "collect" / "statistics.safetensors", made_by))
    weight = state[f"{layer}.weight"].flatten(1)
    if statistics[layer].bias:
        weight = torch.cat([weight, state[f"{layer}.bias"][:, None]], dim=1)
    return weight, statistics[layer]


def seconds(task: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs: other processes only ever add to it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - start)
    return best


def machine() -> str:
    """The threads, and how they wait for each other: passively they slow layers of less than a millisecond down."""
    waiting = os.environ.get("OMP_WAIT_POLICY", "")
    return f"{torch.get_num_threads()} threads" + f" (OMP_WAIT_POLICY={waiting})" * bool(waiting)


def matrix_rate(dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Operations per second of a square matrix product on all threads."""
    left, right = torch.randn(2, size, size, dtype=dtype)
    return 2 * size**3 / seconds(lambda: left @ right, repeats=8)
