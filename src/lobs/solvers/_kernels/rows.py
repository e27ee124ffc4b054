"""Runs a compiled kernel over the rows of a layer on several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def over_rows(task: Callable[[slice], object], rows: int) -> None:
    """Call ``task`` on slices of ``range(rows)``, on as many threads as torch uses.

    The task must release the interpreter's lock. Slices are handed out as threads become free, so a busy core costs
    little; what a slice computes does not depend on the number of threads.
    """
    threads = min(torch.get_num_threads(), rows)
    width = max(1, min(16, -(-rows // (4 * max(threads, 1)))))
    slices = [slice(start, min(start + width, rows)) for start in range(0, rows, width)]
    if threads <= 1:
        for part in slices:
            task(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(task, slices):  # raises what a task raised
            pass
