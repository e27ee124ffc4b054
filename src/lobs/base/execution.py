"""How a long call is carried out: what it may hold in memory, where it keeps finished parts, how it shows progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lobs.base.arguments import check_folder
from lobs.base.memory import check_ceiling

T = TypeVar("T")


@dataclass(frozen=True)
class Execution:
    """How a call is carried out; no result depends on it.

    With one exception, which a note tells: where memory is too short, ``global`` is not compared with ``uniform``.

    Attributes:
        memory: ceiling in bytes on what is kept of many layers at once, and in sequence on the inputs that wait before
            a layer; None: what is available, less a margin. One layer's own matrices always have to fit.
        folder: what took long (a path's order, a budget's shares, a layer pruned in sequence) is written here as soon
            as it is finished, and read where it is found: the same call made again after an interruption goes on where
            it stopped. A folder belongs to one call: another one's is refused.
        progress: wraps the iterable of layers, of trials or of batches (`tqdm`, say).

    Raises:
        TypeError: the ceiling is no number, the folder no path, or progress cannot be called.
        ValueError: the ceiling is not above 0, or the folder is a file.
    """

    memory: float | None = None
    folder: str | Path | None = None
    progress: Callable[[Iterable], Iterable] | None = None

    def __post_init__(self) -> None:
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"progress must be a function that wraps an iterable (tqdm, say), got {self.progress!r}")
        check_ceiling(self.memory)
        object.__setattr__(self, "folder", check_folder(self.folder))

    def shown(self, items: Iterable[T]) -> Iterable[T]:
        """The same items, with progress shown where that was asked for."""
        return shown(items, self.progress)

    @property
    def place(self) -> Path | None:
        """The folder as a path."""
        return None if self.folder is None else Path(self.folder)

    def inside(self, name: str) -> Execution:
        """A copy that uses a subfolder, where there is a folder."""
        return self if self.folder is None else replace(self, folder=Path(self.folder) / name)


def shown(items: Iterable[T], progress: Callable[[Iterable], Iterable] | None) -> Iterable[T]:
    """The same items, wrapped by a caller's function.

    Args:
        items: of the work.
        progress: the function; None: they are not wrapped.

    Returns:
        The items.

    Raises:
        TypeError: it is no function, or does not give back something to iterate over.
    """
    if progress is None:
        return items
    if not callable(progress):
        raise TypeError(f"progress must be a function that wraps an iterable (tqdm, say), got {progress!r}")
    wrapped = progress(items)
    if not isinstance(wrapped, Iterable):
        raise TypeError(f"progress must give back the iterable that it wraps (as tqdm does), got {wrapped!r} from it")
    return _all_of(items, wrapped)


def _all_of(items: Iterable[T], wrapped: Iterable[T]) -> Iterator[T]:
    """What was wrapped; where some of the items do not come, less would be done than was asked for."""
    count = 0
    for item in wrapped:
        count += 1
        yield item
    if count < len(items) if isinstance(items, Sized) else isinstance(items, Iterator) and any(True for _ in items):
        raise ValueError(f"progress gave back {count} items and was given more: it must give back all that it wraps")
