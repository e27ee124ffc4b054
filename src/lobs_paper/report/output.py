"""Writing a report file: first under a temporary name, then renamed, so that no reader sees half a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to `path` in one move and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8 in one move and returns the path."""
    return write_bytes(path, text.encode())


def write_table(path: Path, table: DataFrame) -> Path:
    """Write a frame as CSV, floats in full precision, what is missing as an empty field."""
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_csv(path: Path, records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Path:
    """Write records as CSV, floats in full precision, None as an empty field.

    Args:
        path: file to write.
        records: one mapping per row.
        columns: the header; a record lacks none of them and holds no others.

    Returns:
        The path.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return write_text(path, buffer.getvalue())
