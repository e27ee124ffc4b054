"""What is noted of the folder or archive that a data set was read from, so that it is read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

# Folders up to this size are read whole. Of larger ones, whose pictures are compressed, the ends of every file tell it
# from others: 150 GB are not read to the end.
READ_WHOLE = 4 * 2**30
ENDS = 4096


def noted_source(root: str) -> dict[str, Any]:
    """What there is to be noted when a data set is read.

    Args:
        root: `data.root`.

    Returns:
        Its path, its `stamp`, and of a folder a digest of the files' names, sizes and bytes (`pictures`), which is the
        same wherever the folder lies.
    """
    path = Path(root)
    note: dict[str, Any] = {"root": str(path.resolve()), "stamp": stamp(path)}
    if path.is_dir():
        digest, files = sha256(), list(_files(path))
        whole = sum(file.stat().st_size for file in files) <= READ_WHOLE
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path)} {size}\n".encode(errors="surrogateescape"))
            with file.open("rb") as opened:
                digest.update(opened.read(-1 if whole else ENDS))
                opened.seek(max(0, size - ENDS))
                digest.update(opened.read())
        note["pictures"] = digest.hexdigest()[:16]
    return note


def changed(note: Mapping[str, Any]) -> bool:
    """Whether the folder or archive that was noted has changed since; one that is gone has not."""
    path = Path(str(note.get("root")))
    return "stamp" in note and path.exists() and note["stamp"] != stamp(path)


def stamp(path: Path) -> str | None:
    """A digest of names, sizes and times of a folder's files, or of a file's own; None where there is none."""
    if not path.exists():
        return None
    digest = sha256()
    for file in _files(path):
        status = file.stat()
        line = f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, below, names in os.walk(path):
        below.sort()
        yield from (file for name in sorted(names) if (file := Path(folder, name)).is_file())
