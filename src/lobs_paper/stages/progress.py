"""Progress bars with the time that is left: on a terminal, in one process, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def progress(description: str) -> Any:
    """A wrapper for an iterable: on a terminal a bar with the time that is left, and nothing anywhere else."""

    def wrap(items: Iterable, total: int | None = None) -> Iterable:
        if not on_terminal():
            return items
        from rich.progress import track

        return track(items, description=description, total=total, transient=True)

    return wrap


class Phases:
    """`progress` for a call that goes through several phases under one wrapper.

    Args:
        title: of the present phase; None shows nothing.
        wrap: goes around the items, too.
    """

    def __init__(self, title: str | None, wrap: Callable[[Iterable], Iterable] = iter) -> None:
        self.next(title, wrap)

    def next(self, title: str | None, wrap: Callable[[Iterable], Iterable] = iter) -> None:
        """Go on to another phase."""
        self._title, self._wrap = title, wrap

    def __call__(self, items: Iterable) -> Iterable:
        """The items, shown under the present title."""
        return self._wrap(items if self._title is None else progress(self._title)(items))


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """For work whose length is not known beforehand: on a terminal what is going on, and for how long already."""
    if not on_terminal():
        yield
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), transient=True) as bar:
        bar.add_task(description, total=None)
        yield


def on_terminal() -> bool:
    """Whether this process shows bars: the first one of a stage, and only to a terminal."""
    return sys.stdout.isatty() and first_process()


def first_process() -> bool:
    """Whether this process is the one that writes and prints; always so where there is only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
