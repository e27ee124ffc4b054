"""What is noted of the folder or archive that a data set was read from, so that it is read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

# Of a file whose pictures stay where they are, the first bytes tell it from others: 150 GB are not read to the end.
FIRST_BYTES = 4096


def noted_source(root: str) -> dict[str, Any]:
    """What there is to be noted when a data set is read.

    Args:
        root: `data.root`.

    Returns:
        Its path, its `stamp`, and of a folder a digest of the files' names, sizes and first bytes (`pictures`), which
        is the same wherever the folder lies.
    """
    path = Path(root)
    note: dict[str, Any] = {"root": str(path.resolve()), "stamp": stamp(path)}
    if path.is_dir():
        digest = sha256()
        for file in _files(path):
            with file.open("rb") as opened:
                start = opened.read(FIRST_BYTES)
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode(errors="surrogateescape") + start)
        note["pictures"] = digest.hexdigest()[:16]
    return note


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
