"""How far a long work is and the time left: bars on a terminal, now and then a line elsewhere; in one process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import length_hint
from typing import Any

# Seconds between two lines where there is no terminal, as in a log file.
EVERY = 60.0


def progress(description: str) -> Any:
    """A wrapper for an iterable: on a terminal a bar with the time that is left, elsewhere `Lines`."""

    def wrap(items: Iterable, total: int | None = None) -> Iterable:
        if not on_terminal():
            return _told(items, Lines(description, total or length_hint(items)))
        from rich.progress import track

        return track(items, description=description, total=total, transient=True)

    return wrap


class Lines:
    """How far a long work is, on standard error: a line where `EVERY` seconds have gone by since the last.

    Args:
        description: of the work.
        total: how many parts it has; 0 where that is not known.
        begun: how many of them an earlier run has done.
    """

    def __init__(self, description: str, total: int, begun: int = 0) -> None:
        self.description, self.total, self.begun = description, total, begun
        self._start = self._said = time.monotonic()

    def at(self, done: int) -> None:
        """So many parts are done."""
        now = time.monotonic()
        if now - self._said < EVERY or sys.stderr is None or not first_process():
            return
        self._said, spent = now, now - self._start
        of = f" of {self.total}" if self.total else ""
        fresh, rest = done - self.begun, self.total - done
        left = f", about {_minutes(spent * rest / fresh)} left" if fresh > 0 and rest >= 0 else ""
        with suppress(OSError):  # nobody reads it any more, or the disk is full: no reason to end
            print(f"{self.description}: {done}{of} after {_minutes(spent)}{left}", file=sys.stderr, flush=True)


def _told(items: Iterable, lines: Lines) -> Iterator:
    for done, item in enumerate(items, 1):
        yield item
        lines.at(done)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


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
