"""Test error against density: the curves of all methods, a slider over the densities, and what they say there."""

from __future__ import annotations

from html import escape

from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, CustomJSTickFormatter, LayoutDOM, LegendItem, Slider, Span
from bokeh.models.widgets import Div
from bokeh.models.widgets.tables import DataTable
from bokeh.plotting import figure

from lobs_paper.report.density import NEAR
from lobs_paper.report.drawing import Point
from lobs_paper.report.figures_density import over_seeds_at_each
from lobs_paper.report.interactive import style
from lobs_paper.report.interactive.dots import ERROR_TICKS
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import distinct, label_of
from lobs_paper.report.statistic import over_seeds

DENSITY_TICKS = [50, 30, 20, 15, 10, 7, 5, 3.5, 2, 1.5, 0.9]
_COLUMNS = ("method", "color", "error", "spread", "above")
_HOW = (
    "The slider stops where anything was measured; the table beside it holds what was measured there, the least error "
    "first. Bands reach from the least to the largest seed."
)
# Where the slider stands at first, percent: the paper's headline.
_START = 7.0
_MOVE = """
const index = slider.value;
line.location = 100 * densities[index];
readout.data = readouts[index];
"""


def curves(experiment: Experiment) -> LayoutDOM | None:
    """The plot, its slider and the table of what stands at the slider's density.

    Args:
        experiment: what was measured.

    Returns:
        The layout; None without any curve.
    """
    kept, note = distinct(experiment, "density_curve")
    points = {label_of(runs): over_seeds_at_each(runs) for runs in kept}
    drawn = [runs for runs in kept if points[label_of(runs)]]
    if not drawn:
        return None
    dense = over_seeds(train.test_error_percent for train in experiment.trains.values())
    densities = grid([point.key for entries in points.values() for point in entries])
    readouts = [_readout(drawn, points, density, dense.mean if dense else None) for density in densities]
    start = min(range(len(densities)), key=lambda index: abs(100 * densities[index] - _START))

    plot = _plot(drawn, points, dense.mean if dense else None)
    line = Span(location=100 * densities[start], dimension="height", line_color=style.INK, line_dash="dashed")
    plot.add_layout(line)
    readout = ColumnDataSource(data=readouts[start])
    labels = [f"{100 * density:.3g}%" for density in densities]
    slider = Slider(
        start=0,
        end=len(densities) - 1,
        value=start,
        step=1,
        title="density (weights kept)",
        format=CustomJSTickFormatter(args={"labels": labels}, code="return labels[tick]"),
        sizing_mode="stretch_width",
        bar_color="#7D93B2",
    )
    arguments = {"slider": slider, "line": line, "readout": readout, "readouts": readouts, "densities": densities}
    slider.js_on_change("value", CustomJS(args=arguments, code=_MOVE))
    words = Div(text=escape(f"{_HOW}{note}"), sizing_mode="stretch_width", styles={"color": style.TEXT})
    return row(
        column(plot, slider, words, sizing_mode="stretch_width"),
        column(_table(readout, len(drawn)), width=430),
        sizing_mode="stretch_width",
    )


def grid(densities: list[float]) -> list[float]:
    """The densities at which anything was measured, from dense to sparse; those that are as good as equal once."""
    found: list[float] = []
    for density in sorted(set(densities), reverse=True):
        if not found or density < (1 - NEAR) * found[-1]:
            found.append(density)
    return found


def _readout(
    drawn: list[MethodRuns], points: dict[str, list[Point]], density: float, dense: float | None
) -> dict[str, list]:
    """The table's columns at one density: only what was measured there, the least error first."""
    rows = []
    for runs in drawn:
        label = label_of(runs)
        point = min(points[label], key=lambda entry: abs(entry.key - density))
        if abs(point.key - density) <= NEAR * density:
            spread = f"{point.low:.2f} to {point.high:.2f}" if point.low < point.high else ""
            above = None if dense is None else point.mean - dense
            rows.append((label, style_of(runs.method).color, point.mean, spread, above))
    rows.sort(key=lambda entry: entry[2])
    return {name: [entry[index] for entry in rows] for index, name in enumerate(_COLUMNS)}


def _table(source: ColumnDataSource, rows: int) -> DataTable:
    columns = [
        style.method_column(175),
        *style.number_columns({"error": "test error %", "above": "above dense"}, "0.00", 68),
        style.text_column("spread", "over the seeds", 105),
    ]
    return style.table(source, columns, rows, "readout", width=430)


def _plot(drawn: list[MethodRuns], points: dict[str, list[Point]], dense: float | None) -> figure:
    everything = [point for entries in points.values() for point in entries]
    most, least = 100 * max(p.key for p in everything), 100 * min(p.key for p in everything)
    low = min([p.low for p in everything] + ([dense] if dense else []))
    plot = style.plot(
        470,
        "Test error against density, without retraining",
        x_axis_type="log",
        y_axis_type="log",
        x_range=(most * 1.12, least / 1.12),
        y_range=(low / 1.15, min(110, 1.15 * max(p.high for p in everything))),
        x_axis_label="density (% of the weights kept)",
        y_axis_label="test error (%)",
    )
    style.plain_ticks(plot.xaxis, DENSITY_TICKS)
    style.plain_ticks(plot.yaxis, ERROR_TICKS)
    items, scatters = [], []
    for runs in drawn:
        label, entries = label_of(runs), points[label_of(runs)]
        source = ColumnDataSource(
            {
                "density": [100 * p.key for p in entries],
                "error": [p.mean for p in entries],
                "low": [p.low for p in entries],
                "high": [p.high for p in entries],
                "method": [label] * len(entries),
                "seeds": [len(runs.runs)] * len(entries),
            }
        )
        color = style_of(runs.method).color
        band = plot.varea("density", "low", "high", source=source, fill_color=color, fill_alpha=0.12)
        line = plot.line("density", "error", source=source, line_width=1.8, **style.line_of(runs.method))
        dots = plot.scatter("density", "error", source=source, size=7, **style.marker_of(runs.method))
        scatters.append(dots)
        items.append(LegendItem(label=label, renderers=[band, line, dots]))
    if dense:
        plot.add_layout(Span(location=dense, dimension="width", line_color=style.INK, line_dash="dotted"))
    tips = [("method", "@method"), ("density", "@density{0.00}%"), ("test error", "@error{0.00}%")]
    style.hover(plot, scatters, [*tips, ("over the seeds", "@low{0.00} to @high{0.00} (@seeds)")])
    style.legend(plot, items)
    return plot
