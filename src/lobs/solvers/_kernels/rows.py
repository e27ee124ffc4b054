"""Runs what concerns one row of a layer at a time over all rows, on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, main_thread

import torch
from torch import Tensor


def over_rows(task: Callable[[slice], object], rows: int) -> None:
    """Call ``task`` on slices of ``range(rows)``, on as many threads as torch uses.

    The task must release the interpreter's lock. Slices are handed out as threads become free, so a busy core costs
    little; what a slice computes does not depend on the number of threads.
    """
    threads = min(_threads(), rows)
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
    threads = _threads()
    if threads == 1 or len(batches) < threads:
        for batch in batches:
            task(batch)
        return
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad  # each thread has its own
    ready = Barrier(threads + 1)
    with ThreadPoolExecutor(threads, initializer=_alone, initargs=(ready,)) as pool:
        try:
            done = pool.map(mode()(task), batches)
            ready.wait()
        except BaseException:
            ready.abort()  # a thread could not be started: those that wait for it go on, and end
            raise
        finally:
            torch.set_num_threads(threads)
        for _ in done:  # raises what a task raised
            pass


def _threads() -> int:
    """As many as torch uses; one after the main thread has ended, when no others can be started any more."""
    return torch.get_num_threads() if main_thread().is_alive() else 1


def _alone(ready: Barrier) -> None:
    """Make torch use one thread in this one.

    A thread takes the process's number over at its first question, and `set_num_threads` sets both: so the process's is
    set back as soon as all threads have their own, before anybody else's new thread takes over a 1.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
    ready.wait()
