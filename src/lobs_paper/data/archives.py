"""The files of a folder, a zip archive or a tar archive, read alike."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

# An archive may become so many times as large, and at least so many bytes: pictures hardly shrink, MNIST to a fifth.
MOST_TIMES, ALWAYS = 100, 2**30
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
        ValueError: the root does not exist, is neither a folder nor an archive, or an archive that claims to hold far
            more than it has bytes.
    """
    path = Path(root)
    if not path.exists():
        raise ValueError(f"data.root={root} does not exist: data={name} needs {accepted}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        yield {str(PurePosixPath(file.relative_to(path))): file.read_bytes for file in files}
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            _check_claims(path, (member.file_size for member in members))
            yield {member.filename: partial(packed.read, member) for member in members}
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            _check_claims(path, (member.size for member in archive))
            yield {member.name: partial(_extract, archive, member) for member in archive if member.isfile()}
    else:
        raise ValueError(f"data.root={root} is neither a folder nor a zip or tar archive: data={name} needs {accepted}")


def _check_claims(path: Path, sizes: Iterable[int]) -> None:
    """Refuse an archive that would become far larger than pictures or numbers do, before any of it is read."""
    claimed, most = 0, max(MOST_TIMES * path.stat().st_size, ALWAYS)
    for size in sizes:
        claimed += size
        if claimed > most:
            raise ValueError(
                f"data.root={path} claims to hold more than {most / 2**30:.3g} GiB in {path.stat().st_size} bytes: "
                f"unpack it and give the folder"
            )


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
