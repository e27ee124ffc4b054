"""safetensors files that know whether they are whole, written and read tensor by tensor.

The metadata of a file hold, under `CHECKSUMS`, a CRC-32 in eight hexadecimal digits of the header and one of every
tensor's bytes, in their order. That of the header is taken with eight zeros in its own place, so that names, shapes and
all other metadata are covered, too. safetensors itself reads such a file like any other.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import sha256
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import torch
from torch import Tensor

from lobs.base.atomic import replacing
from lobs.base.warning import warn

# Key in the metadata of every file, with the version of this layout at its end.
CHECKSUMS = "lobs-file-1"
# Key in a part's metadata: a digest of what it was made from.
OF = "of"
# Of a file's name without its endings: file systems take 255 bytes.
LONGEST = 200
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPES = {dtype: word for word, dtype in _TYPES.items()}
_ZEROS = "0" * 8


def write_tensors(
    path: str | Path, keys: Iterable[str], tensor: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file under a temporary name and rename it; the same tensors give the same bytes.

    Args:
        path: the file; its folder is made.
        keys: of all tensors.
        tensor: gives a tensor by its key; called twice for each.
        metadata: texts to store beside them.

    Raises:
        ValueError: a tensor is sparse, has no values, or is of a type that safetensors does not know.
    """
    described = {}
    for key in keys:
        value = tensor(key)
        if value.layout is not torch.strided:
            raise ValueError(f"{key!r} is a sparse tensor, which such a file cannot hold: make it dense (to_dense())")
        if value.dtype not in DTYPES or value.is_meta:
            kind = "has no values (it is on the meta device)" if value.is_meta else f"is of {value.dtype}"
            raise ValueError(f"{key!r} {kind}, which such a file cannot hold")
        described[key] = (value.dtype, list(value.shape), value.numel() * value.element_size())
        del value
    # Wide types first, so that all of them start at a multiple of their width.
    order = sorted(described, key=lambda key: (-described[key][0].itemsize, key))
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(_header(order, described, metadata, [_ZEROS] * len(order)))
        sums = []
        for key in order:
            value = tensor(key).detach().resolve_conj().resolve_neg().cpu().contiguous()
            data = value.flatten().view(torch.uint8).numpy().data
            file.write(data)  # numpy's own tofile drops what goes wrong when the disk is full
            sums.append(f"{crc32(data):08x}")
        file.seek(0)
        file.write(_header(order, described, metadata, sums))


def _header(order: list[str], described: Mapping[str, tuple], metadata: Mapping[str, str], sums: list[str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUMS: " ".join([_ZEROS, *sums])}}
    offset = 0
    for key in order:
        dtype, shape, size = described[key]
        header[key] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.replace(_place(_ZEROS), _place(f"{crc32(text):08x}"), 1)


def _place(checksum: str) -> bytes:
    """Where a header's own checksum stands in it."""
    return f'"{CHECKSUMS}":"{checksum}'.encode()


class TensorFile:
    """An open safetensors file: its header is checked when it is opened, every tensor when it is read.

    It stays the file that was opened, whatever is renamed to its path afterwards, and takes no more memory than the
    file has bytes, whatever it claims.

    Args:
        path: the file.
        kind: of file, in words.
        remedy: what to do where it is damaged.
        note: whether to say that a file of an earlier version has no checksums.

    Attributes:
        path: of the file.
        metadata: the texts in it, without the checksums.
        checked: whether it has checksums.

    Raises:
        ValueError: the file is missing, cannot be read, is damaged or of a later version; the message names it.
    """

    def __init__(
        self, path: str | Path, kind: str = "safetensors file", remedy: str = "make it again", note: bool = True
    ) -> None:
        self.path = Path(path)
        self._words = (kind, remedy)
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            if self.path.exists():
                raise ValueError(f"{path} cannot be read ({error.strerror}): it should be a {kind}") from None
            raise ValueError(f"there is no {kind} {path}") from None
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._text, self._entries, self.metadata = self._read_header()
        later = next((key for key in self.metadata if key.startswith(CHECKSUMS[:-1]) and key != CHECKSUMS), None)
        if later is not None:
            raise ValueError(f"{path} was written by another version of lobs ({later}, {CHECKSUMS} can be read)")
        self._sums = self._read_checksums()
        self.checked = self._sums is not None
        if note and not self.checked:
            _note(self.path)

    def __reduce__(self) -> tuple:
        return _same_file, (self.path, self._words, self.digest)

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._entries)

    def described(self, key: str) -> tuple[torch.dtype, list[int]]:
        """Type and shape of a tensor, without reading it."""
        return self._entries[key][:2]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU."""
        return {key: self.tensor(key) for key in self._entries}

    def tensor(self, key: str) -> Tensor:
        """Read a tensor.

        Args:
            key: its name.

        Returns:
            The tensor, on the CPU.

        Raises:
            ValueError: its bytes are not those that were written.
        """
        dtype, shape, start, stop = self._entries[key]
        data = self._bytes(8 + len(self._text) + start, stop - start)
        if self._sums is not None and f"{crc32(data.numpy().data):08x}" != self._sums[key]:
            raise self.damaged(f"{key!r} has another checksum")
        if dtype is torch.bool and bool((data > 1).any()):
            raise self.damaged(f"{key!r} has bytes that are neither True nor False")
        try:
            return data.view(dtype).view(shape)
        except (RuntimeError, OverflowError, TypeError):
            raise self.damaged(f"{key!r} cannot have the shape {shape}") from None

    @property
    def digest(self) -> str:
        """A digest of all that is in the file: of its header, which holds the checksums, or else of all bytes."""
        digest = sha256(self._text)
        if not self.checked:
            for _, _, start, stop in self._entries.values():
                digest.update(self._bytes(8 + len(self._text) + start, stop - start).numpy().data)
        return digest.hexdigest()[:16]

    def damaged(self, cause: str) -> ValueError:
        """What is raised where the file cannot be what was written."""
        return ValueError(f"{self.path} is damaged or no {self._words[0]} ({cause}): {self._words[1]}")

    def _bytes(self, start: int, count: int) -> Tensor:
        data = torch.empty(count, dtype=torch.uint8)
        view = data.numpy().data
        with self._lock:
            self._file.seek(start)
            while view:
                read = self._file.readinto(view)
                if not read:
                    raise self.damaged("it has become shorter")
                view = view[read:]
        return data

    def _read_header(self) -> tuple[bytes, dict[str, tuple[torch.dtype, list[int], int, int]], dict[str, str]]:
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise self.damaged(f"{size} bytes")
        length = int.from_bytes(self._bytes(0, 8).numpy().tobytes(), "little")
        if length > size - 8:
            raise self.damaged(f"{size} bytes, and a header of {length}")
        text = self._bytes(8, length).numpy().tobytes()
        try:
            header = json.loads(text)
            metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
            entries = {key: _entry(value) for key, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self.damaged(f"its header: {type(error).__name__} {error}") from None
        entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        spans = [(0, 0), *(entry[2:] for entry in entries.values()), (size - 8 - length, None)]
        if any(before[1] != after[0] for before, after in pairwise(spans)):
            raise self.damaged(f"its tensors are not its {size} bytes")
        return text, entries, metadata

    def _read_checksums(self) -> dict[str, str] | None:
        text = self.metadata.pop(CHECKSUMS, None)
        size = len(" ".join([_ZEROS] * (1 + len(self._entries))))
        if text is None:
            spoiled = [key for key, value in self.metadata.items() if len(value) == size and _nearly(key)]
            if spoiled:  # a flipped bit there must not make it a file of an earlier version
                raise self.damaged(f"its header has {spoiled[0]!r} where {CHECKSUMS!r} belongs")
            return None
        own, *sums = text.split(" ")
        if len(text) != size or len(sums) != len(self._entries):
            raise self.damaged(f"{len(sums)} checksums of {len(self._entries)} tensors")
        found = crc32(self._text.replace(_place(own), _place(_ZEROS), 1))
        if f"{found:08x}" != own:
            raise self.damaged("its header has another checksum")
        return dict(zip(self._entries, sums, strict=True))


def _nearly(key: str) -> bool:
    """Whether a key is that of the checksums but for one or two characters."""
    return len(key) == len(CHECKSUMS) and sum(one != other for one, other in zip(key, CHECKSUMS, strict=True)) <= 2


def _entry(value: Any) -> tuple[torch.dtype, list[int], int, int]:
    """A tensor's entry in a header, once it is known to be consistent."""
    dtype, shape, (start, stop) = _TYPES[value["dtype"]], list(value["shape"]), value["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} at {start} to {stop}")
    if prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"{stop - start} bytes for shape {shape}")
    return dtype, shape, start, stop


def _same_file(path: Path, words: tuple[str, str], digest: str) -> TensorFile:
    """Open a file again in another process."""
    file = TensorFile(path, *words, note=False)
    if file.digest != digest:
        raise ValueError(f"{path} is another file than it was: {words[1]}")
    return file


@cache
def _note(path: Path) -> None:
    warn(
        f"{path} is of an earlier version of lobs and has no checksums: nobody can tell whether it is as it was written"
    )


def read_part(path: Path, of: str | None = None) -> TensorFile | None:
    """A finished part of an interrupted call, all of it known to be as it was written.

    Args:
        path: the file.
        of: what the part has under `OF` in its metadata, a digest of what it was made from; None: not compared.

    Returns:
        The file; None where there is none, where it is damaged, or where nobody can tell (it is of an earlier version):
        the last two are said.
    """
    if not path.exists():
        return None
    try:
        part = TensorFile(path, "finished part", "it is computed again", note=False)
        if not part.checked:
            raise part.damaged("it has no checksums")
        if of is not None and part.metadata.get(OF) != of:
            warn(f"{path} holds what was made from another layer or call: it is computed again")
            return None
        for key in part.keys():  # noqa: SIM118 (no mapping)
            part.tensor(key)
        return part
    except ValueError as error:
        warn(str(error))
        return None


def tensors_of_format(path: str | Path, name: str, kind: str) -> tuple[TensorFile, str]:
    """Open a file whose metadata name its format and version.

    Args:
        path: the file.
        name: of the format, with its version at the end (``"lobs-sparse-1"``): the key in the metadata.
        kind: of file, in words.

    Returns:
        The file, and the text under the key.

    Raises:
        ValueError: the file is missing, damaged, of another kind or another version.
    """
    file = TensorFile(path, kind, "save it again", note=False)
    metadata = file.metadata
    if name not in metadata:
        family = name.rpartition("-")[0]
        other = next((key for key in metadata if key.startswith(family)), None)
        if other is not None:
            raise ValueError(f"{path} is a {kind} of another version: {other!r}, and {name!r} is what can be read")
        raise ValueError(f"{path} is no {kind}: its metadata have {list(metadata)}, not {name!r}")
    if not file.checked:
        _note(file.path)
    return file, metadata[name]


def layer_file(folder: Path, name: str) -> Path:
    """Where a folder of one file per layer keeps a layer, whatever characters its name holds and however many."""
    short = quote(name, safe="")
    if len(short) > LONGEST:
        short = f"{short[: LONGEST - 33]}-{sha256(name.encode()).hexdigest()[:32]}"
    return folder / f"{short}.safetensors"
