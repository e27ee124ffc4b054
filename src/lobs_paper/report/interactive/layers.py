"""Bars for every layer: how much of it each method keeps, and the relative error that this leaves."""

from __future__ import annotations

import math
from typing import Any

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FixedTicker, GlyphRenderer, LayoutDOM, LegendItem
from bokeh.plotting import figure

from lobs_paper.report.interactive import style
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import over_seeds

# Share of a layer's place that its bars fill.
_FILLED = 0.84
_LEAST = 1e-6
# From so many layers on their names stand upright.
_MANY = 12
_LEGEND_COLUMNS = 7


def layer_bars(experiment: Experiment) -> LayoutDOM | None:
    """Two plots, density and relative error, a group of bars per layer and a colour per method.

    Args:
        experiment: what was measured.

    Returns:
        The layout; None where no layer is known.
    """
    methods = [runs for runs in experiment.methods if any(run.layers for run in runs.runs)]
    names = list(dict.fromkeys(layer.name for runs in methods for run in runs.runs for layer in run.layers))
    if not names:
        return None
    places = {name: index for index, name in enumerate(names)}
    sources = [(runs, _source(runs, places, index, len(methods))) for index, runs in enumerate(methods)]
    densities, bars = _bars(sources, names, "density", "Density of every layer", "weights kept (%)")
    errors, others = _bars(
        sources, names, "relative", "Relative error of every layer", "E / mean square of the outputs"
    )
    for bar, other in zip(bars, others, strict=True):
        bar.js_link("visible", other, "visible")
    items = [LegendItem(label=label_of(runs), renderers=[bar]) for (runs, _), bar in zip(sources, bars, strict=True)]
    style.legend(densities, items, "above", _LEGEND_COLUMNS)
    return column(densities, errors, sizing_mode="stretch_width")


def _source(runs: MethodRuns, places: dict[str, int], index: int, methods: int) -> ColumnDataSource:
    keys = ("x", "layer", "method", "density", "relative", "error", "kept", "shape")
    data: dict[str, list] = {key: [] for key in keys}
    width = _FILLED / methods
    for name, place in places.items():
        layers = [layer for run in runs.runs for layer in run.layers if layer.name == name]
        density = over_seeds(layer.density for layer in layers)
        if not layers or density is None:
            continue
        relative = over_seeds(layer.relative_error for layer in layers)
        error, kept = over_seeds(layer.error for layer in layers), over_seeds(layer.kept for layer in layers)
        values = (
            *(place + (index + 0.5) * width - _FILLED / 2, name, label_of(runs), 100 * density.mean),
            *(relative.mean if relative else None, error.mean if error else None, kept.mean if kept else None),
            "x".join(map(str, layers[0].shape)),
        )
        for key, value in zip(data, values, strict=True):
            data[key].append(value)
    data["width"] = [0.9 * width] * len(data["x"])
    return ColumnDataSource(data)


def _bars(
    sources: list[tuple[MethodRuns, ColumnDataSource]], names: list[str], value: str, title: str, label: str
) -> tuple[figure, list[GlyphRenderer]]:
    """A plot and its bars, one renderer per method; relative errors on a logarithmic axis."""
    bottom, options = 0.0, dict[str, Any](y_range=(0, 105))
    if value == "relative":
        positive = [number for _, source in sources for number in source.data[value] if number]
        bottom = max(min(positive, default=1.0) / 2, _LEAST)
        options = {"y_axis_type": "log", "y_range": (bottom, 2 * max([*positive, 1.0]))}
    legend = 25 * math.ceil(len(sources) / _LEGEND_COLUMNS) if value == "density" else 0
    names_height = 120 if len(names) > _MANY else 0
    plot = style.plot(
        290 + legend + names_height, title, x_range=(-0.55, len(names) - 0.45), y_axis_label=label, **options
    )
    plot.xaxis.ticker = FixedTicker(ticks=list(range(len(names))))
    plot.xaxis.major_label_overrides = dict(enumerate(names))
    plot.xgrid.grid_line_color = None
    if len(names) > _MANY:
        plot.xaxis.major_label_orientation = 1.2
    bars = []
    for runs, source in sources:
        look = style_of(runs.method)
        colors = {"fill_color": look.color, "line_color": look.color, "fill_alpha": 0.85 if look.filled else 0.25}
        bars.append(plot.vbar(x="x", top=value, width="width", bottom=bottom, source=source, **colors))
    tips = [("method", "@method"), ("layer", "@layer, @shape"), ("density", "@density{0.00}%"), ("kept", "@kept{0,0}")]
    style.hover(plot, bars, [*tips, ("E", "@error{0.0000}"), ("relative E", "@relative{0.000000}")])
    return plot, bars
