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

    from lobs.base.tensor_files import TensorFile


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
    from lobs.base.tensor_files import write_tensors

    write_tensors(path, tensors, tensors.__getitem__, metadata or {})


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
    return tensor_file(path, made_by).tensors()


def tensor_file(path: str | Path, made_by: str, note: bool = True) -> TensorFile:
    """Open a safetensors file: for the texts in it, or for its tensors one by one.

    Args:
        path: the file.
        made_by: the command that writes it, for the error message.
        note: whether to say that a file of an earlier version has no checksums.

    Returns:
        The open file.
    """
    from lobs.base.tensor_files import TensorFile

    return TensorFile(require(path, made_by), remedy=f"delete it and run `{made_by}`", note=note)


def read_json(path: str | Path, made_by: str, kind: type = dict) -> Any:
    """Read a JSON object, or a list, that another stage wrote."""
    try:
        return read_object(require(path, made_by), kind)
    except ValueError as error:
        remedy = f": delete it and run `{made_by}`"
        raise ValueError(f"{error}{'' if made_by in str(error) else remedy}") from None


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, a file is expected there: remove it") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected {'an object' if kind is dict else 'a list'}, got {str(value)[:60]}")
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
