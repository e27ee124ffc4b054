"""The files that stages talk through: JSON, CSV and safetensors, written under a temporary name and renamed."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobs.base.atomic import replacing

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file: indented by 2, keys in the order given, a newline at the end.

    Raises:
        ValueError: the value holds NaN or an infinite number, which JSON cannot express.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: a metric is NaN or infinite ({error})") from None
    write_text(path, text)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file and give its path."""
    with replacing(path) as partial:
        partial.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file with Unix line ends and give its path."""
    return write_bytes(path, text.encode())


def write_table(path: str | Path, table: DataFrame) -> Path:
    """Write a frame as CSV, floats in full precision, what is missing as an empty field, and give its path."""
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table; a row's missing value becomes an empty field, a key that is no column is an error.

    Args:
        path: the file.
        rows: one mapping per line.
        columns: the header, in order.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; the same tensors give the same bytes."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(ready, partial, metadata=dict(metadata or {}))
        if len(metadata or {}) > 1:
            _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Bring the texts in a safetensors file's header, which stand there in a random order, into that of their names."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:  # always, unless safetensors begins to escape differently
            file.seek(8)
            file.write(text)


def load_tensors(path: str | Path, made_by: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        made_by: the command that writes it, for the error message.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(require(path, made_by))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run `{made_by}`") from None


def tensor_metadata(path: str | Path) -> dict[str, str]:
    """The texts that `save_tensors` stored beside the tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left half written in a folder; those still running keep theirs."""
    for file in folder.glob("*.partial"):
        number = re.search(r"\.(\d+)\.\w+\.partial$", file.name)
        if number and file.is_file() and not _is_running(int(number[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def read_json(path: str | Path, made_by: str) -> Any:
    """Read a JSON file that another stage wrote."""
    return json.loads(require(path, made_by).read_text(encoding="utf-8"))


def read_object(path: Path, kind: type = dict) -> Any:
    """Read a JSON object, or a list, whoever wrote it.

    Args:
        path: the file.
        kind: ``dict`` or ``list``.

    Returns:
        Its contents.

    Raises:
        ValueError: the file is no JSON, or holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected {'an object' if kind is dict else 'a list'}, got {value!r}")
    return value


def require(path: str | Path, made_by: str) -> Path:
    """The path of a file that has to be there.

    Args:
        path: the file.
        made_by: the command that writes it, for the error message.

    Returns:
        The path.

    Raises:
        ValueError: it is not; the message names the command that makes it.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist yet: run `{made_by}` first")
    return path
