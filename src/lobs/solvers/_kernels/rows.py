"""Runs what concerns one row of a layer at a time over all rows, on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


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


def side_by_side(task: Callable[[Tensor], object], batches: Sequence[Tensor]) -> None:
    """Call ``task`` on batches of rows, on as many threads as torch uses, each of which torch gives no further ones.

    Torch factorises the matrices of a batch one after the other, and threads that share a small one wait for each
    other: two can take several times as long as one. Fewer batches than threads get all threads, one after the other.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(batches) < threads:
        for batch in batches:
            task(batch)
        return
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad  # each thread has its own
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(mode()(task), batches):  # raises what a task raised
                pass
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads
