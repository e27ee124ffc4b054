"""The paper's errors beside ours at a glance: a row per method, right after pruning and after retraining."""

from __future__ import annotations

from bokeh.layouts import row
from bokeh.models import ColumnDataSource, LayoutDOM, LegendItem, Span
from bokeh.plotting import figure

from lobs_paper.report import summary
from lobs_paper.report.comparison import compare
from lobs_paper.report.interactive import style
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment
from lobs_paper.report.statistic import Statistic

ERROR_TICKS = [0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100]
_STAGES = (("after_pruning", "Right after pruning"), ("after_retraining", "After retraining"))


def dots(experiment: Experiment) -> LayoutDOM | None:
    """Two plots side by side, test errors on a logarithmic axis; None where no method was run."""
    rows = [entry for entry in compare(experiment) if entry.folder is not None]
    if not rows:
        return None
    labels = [summary.label(entry) for entry in rows]
    plots: list[figure] = []
    for attribute, title in _STAGES:
        data: dict[str, list] = {key: [] for key in ("method", "error", "low", "high", "color", "density", "paper")}
        for entry, label in zip(rows, labels, strict=True):
            ours: Statistic | None = getattr(entry, attribute)
            published = getattr(entry.paper, attribute) if entry.paper else None
            if ours and ours.mean > 0 and entry.density:
                spread = ours.deviation or 0.0
                ends = (max(ours.mean - spread, 0.01), ours.mean + spread)
                values = (label, ours.mean, *ends, style_of(entry.method).color, entry.density.mean, published)
                for key, value in zip(data, values, strict=True):
                    data[key].append(value)
        plots.append(_plot(title, labels, data))
    dense = next((entry.original for entry in rows if entry.original), None)
    for plot in plots:
        if dense:
            plot.add_layout(Span(location=dense.mean, dimension="height", line_color=style.INK, line_dash="dotted"))
    return row(*plots, sizing_mode="stretch_width")


def _plot(title: str, labels: list[str], data: dict[str, list]) -> figure:
    source = ColumnDataSource(data)
    values = [value for value in (*data["low"], *data["high"], *data["paper"]) if value]
    plot = style.plot(
        90 + 21 * len(labels),
        title,
        x_axis_type="log",
        y_range=labels[::-1],
        x_range=(min(values, default=1) / 1.15, max(values, default=1) * 1.15),
        x_axis_label="test error (%)",
    )
    style.plain_ticks(plot.xaxis, ERROR_TICKS)
    plot.segment("low", "method", "high", "method", source=source, line_color="color", line_width=2, line_alpha=0.6)
    ours = plot.scatter("error", "method", source=source, size=10, fill_color="color", line_color="color")
    papers = plot.scatter(
        "paper",
        "method",
        source=source,
        size=12,
        marker="diamond",
        fill_color=None,
        line_color=style.INK,
        line_width=1.5,
    )
    tips = [("method", "@method at @density{0.00}%"), ("ours", "@error{0.00}%"), ("paper", "@paper{0.00}%")]
    style.hover(plot, [ours, papers], tips)
    items = [LegendItem(label="ours (bar: standard deviation over the seeds)", renderers=[ours])]
    style.legend(plot, [*items, LegendItem(label="paper", renderers=[papers])], "below", 2)
    return plot
