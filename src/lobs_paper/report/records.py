"""Reads JSON objects and CSV rows into dataclasses, checking every value against the field's type.

Keys that no field asks for are ignored, so that a stage may write more than the report shows. Whatever else is wrong
gives a ValueError that names the file and the key.
"""

from __future__ import annotations

import csv
import json
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def load_object(path: Path, cls: type[Record]) -> Record | None:
    """Read a JSON file into a dataclass; None where there is no such file."""
    return parse(cls, read_json(path), path) if path.exists() else None


def load_rows(path: Path, cls: type[Record]) -> list[Record]:
    """Read a CSV file, one dataclass per row, an empty field as None; no rows where there is no such file."""
    if not path.exists():
        return []
    kinds = typing.get_type_hints(cls)
    records = []
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            source = f"{path}, line {line}"
            values = {
                key: text if kinds[key] is str else _number(text, f"{source}: {key}")
                for key, text in row.items()
                if key in kinds
            }
            records.append(parse(cls, values, source))
    return records


def parse_list(cls: type[Record], data: Any, source: Path | str) -> list[Record]:
    """Build one dataclass per entry of a JSON list.

    Args:
        cls: as for `parse`.
        data: the list.
        source: what messages call it.

    Returns:
        The dataclasses.

    Raises:
        ValueError: it is no list, or an entry does not fit.
    """
    if not isinstance(data, list):
        raise ValueError(f"{source} must be a list, got {data!r}")
    return [parse(cls, entry, source) for entry in data]


def parse(cls: type[Record], data: Any, source: Path | str) -> Record:
    """Build a dataclass from the keys of a JSON object that it has fields for.

    Args:
        cls: a dataclass of texts, truth values, numbers, None, and tuples or dicts of these or of dataclasses.
        data: the object.
        source: what messages call it.

    Returns:
        The dataclass.

    Raises:
        ValueError: it is no object, a key without a default is missing, or a value is of another type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{source}: expected an object, got {data!r}")
    kinds = typing.get_type_hints(cls)
    values = {}
    for entry in fields(cls):  # type: ignore[arg-type]
        name = entry.name
        if name in data:
            values[name] = _convert(kinds[name], data[name], f"{source}: {name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{source}: key '{name}' is missing")
    return cls(**values)


def _number(text: str | None, what: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"{what} must be a number, got {text!r}") from None


def _convert(kind: Any, value: Any, what: str) -> Any:
    """Check a JSON value against a field's type and gives it in that type."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is tuple:
        element: Any = arguments[0]
        nested = is_dataclass(element)
        if nested:
            return tuple(parse_list(element, value, what))
        if not isinstance(value, list):
            raise ValueError(f"{what} must be a list, got {value!r}")
        return tuple(_convert(element, entry, what) for entry in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{what} must be an object, got {value!r}")
        return {key: _convert(arguments[1], entry, f"{what}.{key}") for key, entry in value.items()}
    if type(None) in arguments:  # an optional value: X | None
        return None if value is None else _convert(arguments[0], value, what)
    if isinstance(kind, type) and is_dataclass(kind):
        return parse(kind, value, what)
    accepted = (int, float) if kind is float else kind
    # In Python a truth value is an integer; in a metrics file it is not.
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{what} must be of type {kind.__name__}, got {value!r}")
    return value
