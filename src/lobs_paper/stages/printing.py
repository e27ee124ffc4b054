"""What a stage prints at its end: its metrics as tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def summary(stage: str, metrics: Mapping[str, Any]) -> None:
    """Print a stage's metrics: its scalars, then a table for each list of rows."""
    print_table(f"lobs {stage}", [{"metric": key, "value": value} for key, value in flat(metrics).items()])
    for key, value in metrics.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            print_table(key, value)
        elif isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            print(*(f"{key}: {entry}" for entry in value), sep="\n")


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The scalars of nested metrics, keys joined by dots; lists are left out."""
    scalars: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            scalars.update(flat(value, f"{prefix}{key}."))
        elif not isinstance(value, list):
            scalars[prefix + key] = value
    return scalars


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share their keys as a table; numbers to six digits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    result = Table(title=Text(title), title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
        result.add_column(Text(column), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell(row.get(column))) for column in columns))  # a plain string would be markup
    # Without a terminal rich would assume 80 columns and fold every heading.
    Console(width=None if sys.stdout.isatty() else 160).print(result)


def cell(value: object) -> str:
    """A value of a table as text: numbers to six digits."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
