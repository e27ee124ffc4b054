"""The files of a folder, a zip archive or a tar archive, read alike."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import Any

# An archive may become so many times as large, and at least so many bytes: pictures hardly shrink, MNIST to a fifth.
MOST_TIMES, ALWAYS = 100, 2**30
# Reads one file.
Reader = Callable[[], bytes]
# What the standard library raises over an archive that it cannot read: RuntimeError over an encrypted one.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, RuntimeError, ValueError)


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
        ValueError: the root does not exist, is neither a folder nor an archive, or is an archive that is damaged, holds
            links or claims to hold far more than it has bytes; later, a file that is read is damaged or encrypted.
    """
    path = Path(root)
    if not path.exists():
        raise ValueError(f"data.root={root} does not exist: data={name} needs {accepted}")
    if path.is_dir():
        files = sorted(_walk(path))
        yield {str(PurePosixPath(file.relative_to(path))): file.read_bytes for file in files}
    elif zipfile.is_zipfile(path):
        with _opened(zipfile.ZipFile, path) as packed:
            _refuse_links((item.filename for item in packed.infolist() if S_ISLNK(item.external_attr >> 16)), path)
            _check_claims(path, (item.file_size for item in packed.infolist()))
            names = [name for name in packed.namelist() if not name.endswith("/")]
            yield {name: partial(_read, path, name, partial(packed.read, name)) for name in names}
    elif tarfile.is_tarfile(path):
        with _opened(tarfile.open, path) as archive:
            members = _members(archive, path)
            _refuse_links((member.name for member in members if member.issym()), path)
            _check_claims(path, (member.size for member in members))
            readers = {member.name: partial(_extract, archive, member) for member in members if not member.isdir()}
            yield {name: partial(_read, path, name, reader) for name, reader in readers.items()}
    else:
        raise ValueError(f"data.root={root} is neither a folder nor a zip or tar archive: data={name} needs {accepted}")


def _walk(root: Path) -> Iterator[Path]:
    """All files of a folder; links are followed, but for those to a folder that they lie in."""

    def fail(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None

    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        folder = Path(place)
        above = {parent.resolve() for parent in (folder, *folder.parents) if root in (parent, *parent.parents)}
        folders[:] = [name for name in folders if (folder / name).resolve() not in above]
        for name in names:
            if not (folder / name).exists():
                raise ValueError(f"{folder / name} is a link to a file that is not there: remove it")
            if (folder / name).is_file():
                yield folder / name


def _opened(opened: Callable[[Path], Any], path: Path) -> Any:
    try:
        return opened(path)
    except DAMAGED as error:
        raise ValueError(f"{path} is a damaged archive ({_words(error)}): get it again") from None


def _read(path: Path, name: str, read: Reader) -> bytes:
    try:
        return read()
    except DAMAGED as error:
        raise ValueError(
            f"{path}: {name} cannot be read, the archive is damaged or encrypted ({_words(error)}): get it again, or "
            "unpack it and give the folder"
        ) from None


def _members(archive: tarfile.TarFile, path: Path) -> list[tarfile.TarInfo]:
    """All members of a tar archive that is there to its end, which is a block of zeros."""
    try:
        members = list(archive)
        whole = archive.fileobj is None or archive.fileobj.tell() > archive.offset
    except DAMAGED as error:
        raise ValueError(f"{path} is a damaged archive ({_words(error)}): get it again") from None
    if not whole:
        raise ValueError(f"{path} is a damaged archive (its end is missing): get it again")
    return members


def _refuse_links(links: Iterable[str], path: Path) -> None:
    """Nothing is unpacked, so that links lead nowhere; without their files there would be fewer than there are."""
    for name in links:
        raise ValueError(f"{path}: {name} is a link: pack the files themselves, or unpack it and give the folder")


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


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()
