"""The plots of the interactive page: the paper's errors beside ours, curves over densities, and bars of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, FixedTicker, Legend, LegendItem, Range1d, Span
from bokeh.plotting import figure
from bokeh.themes import Theme
from bokeh.transform import dodge
from pandas import DataFrame, Series

from lobs_paper.report.curves import distinct, steps_of, with_refitted
from lobs_paper.report.drawing import ERROR_TICKS, at_shared_densities
from lobs_paper.report.frame import METHOD, Results
from lobs_paper.report.interactive.tables import Columns, Table, numbers
from lobs_paper.report.methods import style_of

INK, TEXT = "#1C2430", "#3A4554"
_AXIS: dict[str, Any] = dict.fromkeys(("axis_line_color", "major_tick_line_color"), "#9AA4B0")
_AXIS |= dict.fromkeys(("major_label_text_color", "axis_label_text_color"), TEXT)
_LEGEND: dict[str, Any] = {
    "border_line_color": None,
    "label_text_color": TEXT,
    "location": "left",
}
_LEGEND |= {"glyph_height": 16, "glyph_width": 16, "label_height": 16, "label_standoff": 4, "margin": 0, "spacing": 5}
THEME = Theme(
    json={
        "attrs": {
            "Plot": {"outline_line_color": None, "toolbar_location": None, "sizing_mode": "stretch_width"},
            "Axis": {**_AXIS, "minor_tick_line_color": None, "axis_label_text_font_style": "normal"},
            "Grid": {"grid_line_color": "#E4E7EB"},
            "Title": {"text_color": INK, "text_font_size": "14px"},
            "Legend": _LEGEND,
        }
    }
)
_STAGES = {"error_after_pruning": "Right after pruning", "error_after_retraining": "After retraining"}
# Narrower than this nothing can be read: what stands side by side is then put one below the other.
_NARROWEST = 300
_SHAPES = "circle square diamond triangle inverted_triangle hex square_pin circle_x plus x star triangle_pin"
_MARKERS = dict(zip("osD^v><XPx*h", _SHAPES.split(), strict=True))
_FEW_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
# Where the slider stands at first, percent: the paper's headline; and the name of the line that goes with it.
_START = 7.0
SLIDER = "density"
# Share of a layer's place that its bars fill, and from how many layers on their names stand upright.
_FILLED = 0.84
_MANY = 12


def source_of(rows: DataFrame) -> ColumnDataSource:
    """Give a source of the columns of a frame."""
    return ColumnDataSource({name: rows[name].to_numpy() for name in rows})


def marker_of(method: str) -> dict[str, Any]:
    """Keyword arguments of Bokeh's `scatter`."""
    style = style_of(method)
    face = style.color if style.filled else "white"
    return {"marker": _MARKERS.get(style.marker, "circle"), "line_color": style.color, "fill_color": face}


def dots(rows: DataFrame) -> Any:
    """Test errors of the rows of Table 1 beside the paper's, a plot per stage; None where no method was run."""
    rows = rows[rows["folder"].notna()]
    if rows.empty:
        return None
    dense = next((value.mean for value in rows["original_error"] if value), None)
    plots = [_dots(rows, stage, heading) for stage, heading in _STAGES.items()]
    for plot in plots:
        _mark(plot, dense, "height")
    return _wrapping(*plots)


def _dots(rows: DataFrame, stage: str, heading: str) -> figure:
    labels = list(rows["label"])
    ours = rows[stage].map(lambda value: value.mean)
    spread = rows[stage].map(lambda value: value.deviation).fillna(0)
    data = DataFrame({"method": labels, "color": [style_of(method).color for method in rows["method"]]}, rows.index)
    data = data.assign(error=ours, low=(ours - spread).clip(0.01), high=ours + spread)
    data["paper"], data["density"] = rows[f"paper_{stage}"].astype(float), rows["density"].map(lambda value: value.mean)
    data = data[(data["error"] > 0) & data["density"].notna()]
    reach = _around(data[["low", "high", "paper"]].stack())
    tips = [("method", "@method at @density{0.00}%"), ("ours", "@error{0.00}%"), ("paper", "@paper{0.00}%")]
    plot = _plot(heading, 21 * len(labels), x_axis_type="log", x_range=reach, y_range=labels[::-1], tooltips=tips)
    plot.xaxis.axis_label = "test error (%)"
    _plain(plot.xaxis, _FEW_TICKS if reach.end > 10 * reach.start else ERROR_TICKS)
    source = source_of(data)
    plot.segment("low", "method", "high", "method", source=source, line_color="color", line_width=2, line_alpha=0.6)
    ours = plot.scatter("error", "method", source=source, size=10, fill_color="color", line_color="color")
    look = {"marker": "diamond", "fill_color": None, "line_color": INK, "line_width": 1.5}
    papers = plot.scatter("paper", "method", source=source, size=12, **look)
    plot.hover.renderers = [ours, papers]
    _legend(plot, [("ours ± standard deviation", [ours]), ("paper", [papers])])
    return plot


@dataclass(frozen=True)
class Curves:
    """Test error against density.

    Attributes:
        plot: a line per method, and one at the slider's place, named `SLIDER`.
        steps: the slider's places by what is shown: densities in percent, from the largest on.
        start: the place that it has at first.
        readout: what was measured at each place, the least error first.
        note: what the curves leave out.
    """

    plot: figure
    steps: dict[str, float]
    start: str
    readout: Table
    note: str


def curves(results: Results) -> Curves | None:
    """Test error against density, with what was measured at every place of a slider; None where nothing was."""
    kept, note = distinct(with_refitted(results.density_curve))
    points = at_shared_densities(kept[kept["test_error_percent"] > 0])
    if points.empty:
        return None
    groups = points.groupby([*METHOD, "kept"], sort=False)["test_error_percent"]
    points = groups.agg(error="mean", low="min", high="max", seeds="count").reset_index()
    dense = results.dense["train.test_error_percent"].mean()
    plot = _curves(points, dense)
    steps = steps_of(points["kept"])
    names = {step: f"{step:.3g}%" for step in steps}
    start = min(steps, key=lambda step: abs(step - _START))
    plot.add_layout(Span(name=SLIDER, location=start, dimension="height", line_color=INK, line_dash="dashed"))
    found = points.assign(
        step=[names[min(steps, key=lambda step: abs(step - kept))] for kept in points["kept"]],
        color=[style_of(method).color for method in points["method"]],
        above=points["error"] - dense,
        spread=[
            f"{low:.2f} to {high:.2f}" if low < high else ""
            for low, high in zip(points["low"], points["high"], strict=True)
        ],
    ).sort_values("error")
    columns: Columns = {
        "label": ("method", None),
        **numbers(".2f", {"error": "test error %", "above": "above dense"}),
        "spread": ("over the seeds", None),
    }
    rows = found[["label", "color", "error", "above", "spread", "step"]]
    readout = Table("readout", "Test errors at the density that the slider says", rows, columns)
    return Curves(plot, {name: step for step, name in names.items()}, names[start], readout, note)


def _curves(points: DataFrame, dense: float) -> figure:
    tips = [("method", "@label"), ("density", "@kept{0.00}%"), ("test error", "@error{0.00}%")]
    tips.append(("over the seeds", "@low{0.00} to @high{0.00} (@seeds)"))
    across, up = _around(points["kept"]), _around(Series([*points["low"], *points["high"], dense]))
    reach = {"x_range": Range1d(across.end, across.start), "y_range": up}
    plot = _plot(None, 400, x_axis_type="log", y_axis_type="log", tooltips=tips, **reach)
    plot.xaxis.axis_label, plot.yaxis.axis_label = "density (% of the weights kept)", "test error (%)"
    _plain(plot.xaxis)
    _plain(plot.yaxis)
    entries, marks = [], []
    for (label, method), rows in points.groupby(["label", "method"], sort=False):
        source, style = source_of(rows), style_of(method)
        dash = "dashed" if style.line == "--" else "solid"
        own = {"source": source, "name": label}
        band = plot.varea("kept", "low", "high", fill_color=style.color, fill_alpha=0.12, **own)
        line = plot.line("kept", "error", line_width=1.8, line_color=style.color, line_dash=dash, **own)
        marks.append(plot.scatter("kept", "error", size=7, **own, **marker_of(method)))
        entries.append((label, [band, line, marks[-1]]))
    plot.hover.renderers = marks
    _mark(plot, dense, "width")
    _legend(plot, entries)
    return plot


def layers(results: Results) -> Any:
    """Bars for every layer: how much of it each method keeps, and the relative error that this leaves."""
    if results.layers.empty:
        return None
    names = ["density", "relative_error", "error", "kept"]
    rows = results.layers.groupby([*METHOD, "layer", "shape"], sort=False)[names].mean().reset_index()
    rows["density"] *= 100
    positive = rows.loc[rows["relative_error"] > 0, "relative_error"]
    least = max(positive.min() / 2, 1e-6) if len(positive) else 0.5
    densities = _bars(rows, "density", "Density of every layer", y_range=(0, 105))
    errors = _bars(
        rows,
        "relative_error",
        "Relative error of every layer",
        least,
        y_axis_type="log",
        y_range=(least, 2 * max([*positive, 1.0])),
    )
    densities.yaxis.axis_label, errors.yaxis.axis_label = "weights kept (%)", "E / mean square of the outputs"
    _legend(densities, [(bar.name, [bar]) for bar in densities.renderers])
    return column(densities, errors, sizing_mode="stretch_width")


def _bars(rows: DataFrame, top: str, heading: str, bottom: float = 0.0, **options: Any) -> figure:
    layers, methods = list(rows["layer"].unique()), rows["label"].unique()
    tips = [("method", "@label"), ("layer", "@layer, @shape"), ("density", "@density{0.00}%"), ("kept", "@kept{0,0}")]
    tips += [("E", "@error{0.0000}"), ("relative E", "@relative_error{0.000000}")]
    plot = _plot(heading, 220, x_range=layers, tooltips=tips, **options)
    plot.xgrid.grid_line_color = None
    plot.xaxis.major_label_orientation = 1.2 if len(layers) > _MANY else "horizontal"
    width = _FILLED / len(methods)
    for index, (label, own) in enumerate(rows.groupby("label", sort=False)):
        look = style_of(own["method"].iloc[0])
        colors = {"fill_color": look.color, "line_color": look.color, "fill_alpha": 0.85 if look.filled else 0.25}
        place = dodge("layer", (index + 0.5) * width - _FILLED / 2, range=plot.x_range)
        bar = {"width": 0.9 * width, "bottom": bottom, "source": source_of(own), "name": label}
        plot.vbar(x=place, top=top, **bar, **colors)
    return plot


def _plot(heading: str | None, height: int, **options: Any) -> figure:
    return figure(title=heading, frame_height=height, height=None, min_width=_NARROWEST, tools="", **options)


def _wrapping(*parts: Any) -> Any:
    """Parts side by side where there is room for that."""
    for part in parts:
        part.min_width = _NARROWEST
    return row(*parts, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})


def _legend(plot: figure, entries: list[tuple[str, list[Any]]]) -> None:
    """A legend below the plot."""
    plot.add_layout(Legend(items=[LegendItem(label=label, renderers=parts) for label, parts in entries]), "below")


def _mark(plot: figure, dense: float | None, dimension: str) -> None:
    """The dense network's error as a dotted line."""
    if dense and dense > 0:
        plot.add_layout(Span(location=dense, dimension=dimension, line_color=INK, line_dash="dotted"))


def _around(values: Series) -> Range1d:
    """A range of a logarithmic axis with some room."""
    positive = [*values[values > 0]] or [1.0]
    return Range1d(min(positive) / 1.15, max(positive) * 1.15)


def _plain(axis: Any, ticks: Sequence[float] = ERROR_TICKS) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.ticker = FixedTicker(ticks=list(ticks))
    axis.major_label_overrides = {tick: f"{tick:g}" for tick in ticks}
