"""How the interactive page shows what methods.py decides, in Bokeh's terms, and what all its plots and tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, InlineStyleSheet, Legend, LegendItem, Title
from bokeh.models.widgets.tables import (
    DataTable,
    HTMLTemplateFormatter,
    NumberFormatter,
    ScientificFormatter,
    TableColumn,
)
from bokeh.plotting import figure

from lobs_paper.report.methods import style_of

INK, TEXT, GRID = "#1C2430", "#3A4554", "#E4E7EB"
TONES = {"better": "#0A7A55", "reproduced": "#2459A6", "not reproduced": "#B2481A"}
_MARKERS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle",
    "v": "inverted_triangle",
    ">": "hex",
    "<": "square_pin",
    "X": "circle_x",
    "P": "plus",
    "x": "x",
    "*": "star",
}
# A cell with the method's colour before its name.
_METHOD_CELL = '<span style="color:<%= color %>;font-size:15px">&#9632;</span> <%= value %>'
_ROW = 25
_TALLEST = 560
# Headings of several words get two lines, numbers' headings stand over their numbers.
_TABLE_CSS = """
.slick-header-column { height: 42px !important; white-space: normal !important; }
.slick-header-column .slick-column-name { white-space: normal; line-height: 1.15; font-size: 11.5px; font-weight: 600; }
.slick-header { border-bottom: 1px solid #C9D0D8; }
.slick-cell { font-size: 12.5px; }
"""


def marker_of(method: str) -> dict[str, Any]:
    """Keyword arguments of Bokeh's `scatter`."""
    style = style_of(method)
    face = style.color if style.filled else "white"
    return {"marker": _MARKERS.get(style.marker, "circle"), "line_color": style.color, "fill_color": face}


def line_of(method: str) -> dict[str, Any]:
    """Keyword arguments of Bokeh's `line`."""
    style = style_of(method)
    return {"line_color": style.color, "line_dash": "dashed" if style.line == "--" else "solid"}


def plot(height: int, title: str, **options: Any) -> figure:
    """An empty plot in the page's look."""
    made = figure(height=height, sizing_mode="stretch_width", toolbar_location=None, tools="", **options)
    made.title = Title(text=title, text_color=INK, text_font_size="14px")
    made.outline_line_color = None
    for axis in made.axis:
        axis.axis_line_color = axis.major_tick_line_color = "#9AA4B0"
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = TEXT
        axis.axis_label_text_font_style = "normal"
    for grid in made.grid:
        grid.grid_line_color = GRID
    return made


def legend(of: figure, items: list[LegendItem], place: str = "right", columns: int = 1) -> None:
    """A legend beside the plot; a click on an entry hides its method."""
    made = Legend(items=items, click_policy="hide", border_line_color=None, label_text_font_size="12px", spacing=1)
    made.label_text_color, made.ncols, made.location = TEXT, columns, "top_left"
    of.add_layout(made, place)


def hover(of: figure, renderers: list[Any], tips: list[tuple[str, str]]) -> None:
    """Exact values under the pointer."""
    of.add_tools(HoverTool(renderers=renderers, tooltips=tips, point_policy="snap_to_data"))


def plain_ticks(axis: Any, ticks: list[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.ticker = FixedTicker(ticks=ticks)
    axis.major_label_overrides = {tick: f"{tick:g}" for tick in ticks}


def method_column(width: int = 185) -> TableColumn:
    """The first column of every table: it needs `method` and `color` in its source."""
    return text_column("method", "method", width, _METHOD_CELL)


def text_column(field: str, title: str, width: int, template: str = "<%= value %>") -> TableColumn:
    """A column of texts, by a template of its cells."""
    return TableColumn(field=field, title=title, width=width, formatter=HTMLTemplateFormatter(template=template))


def number_columns(titles: dict[str, str], shown: str, width: int = 82) -> list[TableColumn]:
    """Columns of numbers by their fields; what is missing is shown as a dash and sorted to the end."""
    formatter = NumberFormatter(format=shown, text_align="right", nan_format="-")
    return [TableColumn(field=key, title=title, width=width, formatter=formatter) for key, title in titles.items()]


def small_number_columns(titles: dict[str, str], width: int = 82) -> list[TableColumn]:
    """Columns of numbers over many powers of ten."""
    formatter = ScientificFormatter(
        precision=3, power_limit_low=-2, power_limit_high=6, text_align="right", nan_format="-"
    )
    return [TableColumn(field=key, title=title, width=width, formatter=formatter) for key, title in titles.items()]


def table(source: ColumnDataSource, columns: Sequence[TableColumn], rows: int, name: str, **options: Any) -> DataTable:
    """A table that a click on a heading sorts, as high as its rows, with scrolling beyond that."""
    return DataTable(
        source=source,
        columns=list(columns),
        index_position=None,
        height=min(_TALLEST, 54 + _ROW * rows),
        css_classes=[name],
        stylesheets=[InlineStyleSheet(css=_TABLE_CSS)],
        **options,
    )


def column_source(rows: Sequence[dict[str, Any]]) -> ColumnDataSource:
    """A source from rows that share their keys."""
    return ColumnDataSource({key: [row[key] for row in rows] for key in rows[0]})
