"""The tables of the interactive page, which a click on a heading sorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import (
    CDSView,
    ColumnDataSource,
    DataTable,
    HTMLTemplateFormatter,
    InlineStyleSheet,
    NumberFormatter,
    ScientificFormatter,
    TableColumn,
)
from pandas import DataFrame

from lobs_paper.report.frame import METHOD, Results
from lobs_paper.report.methods import style_of

_TONES = {"better": "#0A7A55", "reproduced": "#2459A6", "not reproduced": "#B2481A"}
_ROW, _TALLEST = 25, 560
# Headings of several words get two lines.
_CSS = """
.slick-header-column { height: 42px !important; white-space: normal !important; }
.slick-header-column .slick-column-name { white-space: normal; line-height: 1.15; font-size: 11.5px; font-weight: 600; }
.slick-header { border-bottom: 1px solid #C9D0D8; }
.slick-cell { font-size: 12.5px; }
"""
# Cells: the method's colour before its name, a verdict in its own, a long text in full under the pointer.
# `<%-` writes a text, `<%=` would write markup.
_CELLS = {
    "label": '<span style="color:<%- color %>;font-size:15px">&#9632;</span> <%- value %>',
    "verdict": '<b style="color:<%- tone %>"><%- value %></b>',
    "why": '<span title="<%- value %>"><%- value %></span>',
}
_ERRORS = {
    "pruned": ("after pruning", "error_after_pruning"),
    "retrained": ("after retraining", "error_after_retraining"),
}


def source_of(rows: DataFrame) -> ColumnDataSource:
    """Give a source of the columns of a frame."""
    return ColumnDataSource({name: rows[name].to_numpy() for name in rows})


def texts(*columns: tuple[str, str, int]) -> list[TableColumn]:
    """Columns of texts: field, heading, width."""
    cells = {field: HTMLTemplateFormatter(template=_CELLS.get(field, "<%- value %>")) for field, _, _ in columns}
    return [
        TableColumn(field=field, title=title, width=width, formatter=cells[field]) for field, title, width in columns
    ]


def numbers(shown: str, titles: dict[str, str], width: int = 82) -> list[TableColumn]:
    """Columns of numbers by their fields, in a format or in powers of ten (``"e"``); missing ones are dashes."""
    look: dict[str, Any] = {"text_align": "right", "nan_format": "-"}
    if shown == "e":
        formatter = ScientificFormatter(precision=3, power_limit_low=-2, power_limit_high=6, **look)
    else:
        formatter = NumberFormatter(format=shown, **look)
    return [TableColumn(field=key, title=title, width=width, formatter=formatter) for key, title in titles.items()]


def table(
    source: ColumnDataSource, columns: Sequence[TableColumn], rows: int, name: str, view: Any = None
) -> DataTable:
    """A table as high as its rows; what does not fit is scrolled in its own box."""
    return DataTable(
        source=source,
        view=view or CDSView(),
        columns=list(columns),
        index_position=None,
        autosize_mode="none",
        height=min(_TALLEST, 72 + _ROW * rows),
        sizing_mode="stretch_width",
        css_classes=[name],
        stylesheets=[InlineStyleSheet(css=_CSS)],
    )


def comparison(rows: DataFrame) -> DataTable | None:
    """Table 1: a row per method, the paper's figures beside ours, the differences and the verdict."""
    if rows.empty:
        return None
    names = {"density": "density", **{short: name for short, (_, name) in _ERRORS.items()}, "iterations": "iterations"}
    shown = {
        "label": rows["label"],
        "color": [style_of(method).color for method in rows["method"]],
        "verdict": rows["word"].where(rows["source"].notna(), ""),
        "tone": rows["word"].map(_TONES).fillna("#6B7480"),
        "why": rows["why"].where(rows["source"].notna(), rows["verdict"]),
    }
    for short, name in names.items():
        papers, ours = rows[f"paper_{name}"].astype(float), rows[name].map(lambda value: value.mean)
        shown |= {f"{short}_paper": papers, short: ours, f"{short}_off": ours - papers}
    ends = (("_paper", ", paper"), ("", ", ours"), ("_off", ", difference"))
    errors = {f"{short}{end}": f"{text}{what}" for short, (text, _) in _ERRORS.items() for end, what in ends}
    refit = rows["error_after_refit"].map(lambda value: value.mean)
    if refit.notna().any():
        shown["refitted"], errors["refitted"] = refit, "after refit, ours"
    columns = [
        *texts(("label", "method", 205)),
        *numbers("0.0", {"density_paper": "density %, paper", "density": "density %, ours"}, 62),
        *numbers("0.00", errors, 70),
        *numbers("0,0", {"iterations_paper": "iterations, paper", "iterations": "iterations, ours"}, 70),
        *texts(("verdict", "verdict", 125), ("why", "why", 330)),
    ]
    return table(source_of(DataFrame(shown)), columns, len(rows), "comparison")


def layers(results: Results) -> DataTable | None:
    """Every layer of every method, means over the seeds."""
    if results.layers.empty:
        return None
    names = ["density", "kept", "error", "relative_error", "bound_contribution"]
    rows = results.layers.groupby([*METHOD, "layer", "shape"], sort=False)[names].mean().reset_index()
    rows["color"] = [style_of(method).color for method in rows["method"]]
    rows["density"] *= 100
    columns = [
        *texts(("label", "method", 205), ("layer", "layer", 205), ("shape", "shape", 140)),
        *numbers("0.00", {"density": "density %"}, 110),
        *numbers("0,0", {"kept": "weights kept"}, 110),
        *numbers("e", {"error": "E", "relative_error": "relative E", "bound_contribution": "bound term"}, 110),
    ]
    return table(source_of(rows[["label", "color", "layer", "shape", *names]]), columns, len(rows), "layers")
