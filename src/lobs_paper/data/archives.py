"""The files of a folder, a zip archive or a tar archive, read alike."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

# Reads one file.
Reader = Callable[[], bytes]


@contextmanager
def files_in(root: str, name: str, accepted: str) -> Iterator[dict[str, Reader]]:
    """What a folder or an archive holds, for the length of a block.

    Args:
        root: the folder or archive, key `data.root`.
        name: the data set, for error messages.
        accepted: what it needs, for error messages.

    Yields:
        Names, with ``/`` between their parts, and what reads each file.

    Raises:
        ValueError: the root does not exist, or is neither a folder nor an archive.
    """
    path = Path(root)
    if not path.exists():
        raise ValueError(f"data.root={root} does not exist: data={name} needs {accepted}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        yield {str(PurePosixPath(file.relative_to(path))): file.read_bytes for file in files}
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            yield {member: partial(packed.read, member) for member in packed.namelist() if not member.endswith("/")}
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            yield {member.name: partial(_extract, archive, member) for member in archive if member.isfile()}
    else:
        raise ValueError(f"data.root={root} is neither a folder nor a zip or tar archive: data={name} needs {accepted}")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
