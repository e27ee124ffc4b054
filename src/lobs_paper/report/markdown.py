"""Frames as Markdown tables, and summaries over seeds as columns of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pandas import DataFrame, Series

from lobs_paper.report.statistic import Statistic

# Heading, column, and how its values are printed.
Column = tuple[str, str, Callable[[Any], str]]


def printed(rows: DataFrame, *columns: Column) -> DataFrame:
    """Give a table of finished texts; headings may repeat."""
    cells = {place: rows[name].map(show).astype(object) for place, (_, name, show) in enumerate(columns)}
    return DataFrame(cells, index=rows.index).set_axis([heading for heading, *_ in columns], axis=1)


def markdown(table: DataFrame, left: Sequence[str] = ()) -> str:
    """Give a table of texts as GitHub's Markdown, the first column and those in `left` aligned left, others right."""
    rule = ["---", *("---" if name in left else "---:" for name in table.columns[1:])]
    lines = [table.columns, rule, *table.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def means(rows: DataFrame, names: Mapping[str, str], unit: str = "") -> dict[str, Series]:
    """Give mean and deviation of columns of statistics, under the names that CSV files have for them."""
    numbers: dict[str, Series] = {}
    for column, name in names.items():
        numbers[f"{name}{unit}"] = rows[column].map(lambda value: value.mean)
        numbers[f"{name}_deviation"] = rows[column].map(lambda value: value.deviation)
    return numbers


def filled(rows: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Put a summary of nothing where a row has none."""
    cells = {name: [v if isinstance(v, Statistic) else Statistic() for v in rows[name]] for name in columns}
    return rows.assign(**{name: Series(values, rows.index, dtype=object) for name, values in cells.items()})


def joined(texts: Sequence[str]) -> str:
    """Give "a, b and c"."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
