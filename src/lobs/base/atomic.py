"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

# What a new file may be read and written by, whoever writes it: safetensors keeps its own to the owner.
_MASK = os.umask(0)
os.umask(_MASK)
_MODE = 0o666 & ~_MASK


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it and rename it at the block's end; an error leaves nothing behind.

    It is on the disk before it is renamed: what a full disk or a broken one has not taken raises here, and the file
    from before stays.

    Args:
        path: the file; its folder is made.

    Yields:
        The temporary path to write to.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique also among threads, and containers that share a folder and number their processes alike.
    partial = path.with_name(f"{path.name}.{os.getpid()}.{token_hex(4)}.partial")
    try:
        yield partial
        _sync(partial)
        partial.chmod(_MODE)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a failed write does not name
        raise
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, in the order in which they changed; not every file system can."""
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
