"""Draws the report's figures with Matplotlib, as SVG and PNG that are the same bytes for the same metrics.

Every function takes one experiment and gives a Drawing, or None where the runs hold nothing to draw. A method keeps
its colour and marker in all figures (methods.py). Over several seeds a line is the mean, and its band reaches from the
least to the largest value.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from lobs.report.methods import style_of
from lobs.report.output import write_bytes, write_csv
from lobs.report.paper import FIGURE_NETWORK
from lobs.report.results import Experiment, MethodRuns, Run
from lobs.report.statistic import over_seeds

# A fixed salt makes the identifiers inside an SVG, and so the whole file, reproducible.
_SETTINGS: Any = {
    "svg.hashsalt": "lobs",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}
_PNG_DPI = 150
# The paper's Figure 3 claims more than 90% of the sensitivities below this.
_SMALL_SENSITIVITY = 1e-3
# Its tail towards zero, the weights of inputs that are almost always zero, is cut off where it is this thin.
_TAIL_PERCENT = 0.1
# Panels in a row, where there is one for every layer.
_COLUMNS = 4
_PLACE = ("experiment", "method", "folder", "seed")


@dataclass(frozen=True)
class Drawing:
    """A finished figure, the numbers behind it, and the words for the page."""

    stem: str
    title: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    records: list[dict[str, Any]]

    def write(self, folder: Path) -> list[Path]:
        """Write the figure and its numbers.

        Args:
            folder: where to.

        Returns:
            The paths of `<stem>.svg`, `<stem>.png` and `<stem>.csv`.
        """
        paths = []
        with matplotlib.rc_context(_SETTINGS):
            for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                self.figure.savefig(buffer, format=suffix, dpi=_PNG_DPI, metadata=metadata)
                paths.append(write_bytes(folder / f"{self.stem}.{suffix}", buffer.getvalue()))
        return [*paths, write_csv(folder / f"{self.stem}.csv", self.records, self.columns)]


def draw_all(experiment: Experiment) -> list[Drawing]:
    """Draw every figure that the experiment has the data for, in the paper's order."""
    with matplotlib.rc_context(_SETTINGS):
        drawings = [draw(experiment) for draw in (figure2, figure3, figure4, figure5)]
    return [drawing for drawing in drawings if drawing]


def figure2(experiment: Experiment) -> Drawing | None:
    """Test accuracy while the first layer alone is pruned from 0 to 100%, one line per method."""
    columns = (*_PLACE, "density", "test_accuracy_percent")
    records = _point_records(experiment, "first_layer_curve", columns[4:])
    if not records:
        return None
    figure, (axes, detail) = _canvas(2)
    distinct, note = _distinct(experiment, "first_layer_curve")
    for runs in distinct:
        curves = [[(p.density, p.test_accuracy_percent) for p in run.first_layer_curve] for run in runs.runs]
        points = _average(curves)
        for panel in (axes, detail):
            _draw_line(panel, runs, [100 * (1 - point.key) for point in points], points)
    axes.set(xlabel="weights removed from the first layer (%)", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 100.5), ylim=(0, 102))
    detail.set(xlabel="the last 20%", xlim=(80, 100.2))
    _legend(figure, axes)
    return Drawing(
        stem=_stem(2, experiment),
        title="Figure 2: test accuracy while the first layer is pruned",
        caption="Only the first layer is pruned, without retraining; the other layers stay dense." + note,
        figure=figure,
        columns=columns,
        records=records,
    )


def figure3(experiment: Experiment) -> Drawing | None:
    """Distribution of the first layer's sensitivities, one outline per method, of the first seed that has any."""
    figure, (axes,) = _canvas()
    records = []
    shares = []
    starts = []
    for runs in experiment.methods:
        run, histogram = next(((run, run.histogram) for run in runs.runs if run.histogram), (None, None))
        if run is None or histogram is None or not any(histogram.counts):
            continue
        style = style_of(runs.method, runs.folder)
        total = sum(histogram.counts)
        heights = [100 * count / total for count in histogram.counts]
        edges = [10**edge for edge in histogram.log10_edges]
        starts.append(edges[next(i for i, share in enumerate(itertools.accumulate(heights)) if share >= _TAIL_PERCENT)])
        shares.append(f"{style.label}: {100 * histogram.share_below:.1f}% below {_SMALL_SENSITIVITY:g}")
        axes.stairs(heights, edges, fill=True, color=style.color, alpha=0.25)
        axes.stairs(heights, edges, color=style.color, linewidth=1.5, label=shares[-1])
        records += [
            {**_place(runs, run), "log10_from": left, "log10_to": right, "weights": count}
            for left, right, count in zip(
                histogram.log10_edges[:-1], histogram.log10_edges[1:], histogram.counts, strict=True
            )
        ]
    if not records:
        return None
    axes.set_xlim(min(starts), max(axes.get_xlim()[1], 3 * _SMALL_SENSITIVITY))
    axes.axvline(_SMALL_SENSITIVITY, color="black", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="sensitivity of a weight of the first layer", ylabel="share of the weights (%)")
    _legend(figure, axes)
    caption = (
        f"The dashed line marks {_SMALL_SENSITIVITY:g}: the paper finds more than 90% of the sensitivities below it. "
        f"Ours: {'; '.join(shares)}. Up to {_TAIL_PERCENT:g}% lie further to the left."
    )
    return Drawing(
        stem=_stem(3, experiment),
        title="Figure 3: distribution of the first layer's sensitivities",
        caption=caption,
        figure=figure,
        columns=(*_PLACE, "log10_from", "log10_to", "weights"),
        records=records,
    )


def figure4(experiment: Experiment) -> Drawing | None:
    """Test error during retraining, one line per method, an iterative method's rounds one after the other."""
    columns = (*_PLACE, "round", "iteration", "train_loss", "test_error_percent")
    records = _point_records(experiment, "retrain_curve", columns[4:])
    if not records:
        return None
    figure, (axes,) = _canvas()
    for runs in experiment.methods:
        curves = [
            # No place on a logarithmic axis: errors of zero; and those that were not measured.
            [((p.round, p.iteration), p.test_error_percent) for p in run.retrain_curve if p.test_error_percent]
            for run in runs.runs
        ]
        points = _average(curves)
        _draw_line(axes, runs, [point.key[1] for point in points], points)
    retrained = [run.retrain for runs in experiment.methods for run in runs.runs if run.retrain]
    original = over_seeds(entry.error_before_percent for entry in retrained)
    if original and original.mean > 0:
        label = f"original error ({original.mean:.2f}%)"
        axes.axhline(original.mean, color="black", linewidth=1, linestyle="--", label=label)
    axes.set(xlabel="iterations of retraining (minibatches)", ylabel="test error (%)", yscale="log")
    # Linear up to 10 iterations, so that the start has its place, logarithmic beyond.
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(0, 1.15 * max(record["iteration"] for record in records) + 1)
    limits = axes.get_ylim()
    axes.set_yticks([1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100])
    axes.set_ylim(limits)  # those of the data, which the ticks have widened
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _legend(figure, axes)
    caption = (
        "Retraining with the masks fixed, beginning right after pruning; logarithmic axes. "
        "Where an iterative method jumps, a new round of pruning begins."
    )
    title = "Figure 4: test error while the pruned network is retrained"
    return Drawing(_stem(4, experiment), title, caption, figure, columns, records)


def figure5(experiment: Experiment) -> Drawing | None:
    """Share of weights that a tolerable error sqrt(E) allows to remove: a panel per layer, a line per method."""
    columns = (*_PLACE, "layer", "density", "error", "relative_error", "sensitivity_threshold")
    records = _point_records(experiment, "paths", columns[4:])
    if not records:
        return None
    layers = list(dict.fromkeys(record["layer"] for record in records))
    figure, panels = _canvas(len(layers))
    distinct, note = _distinct(experiment, "paths")
    for axes, layer in zip(panels, layers, strict=True):
        for runs in distinct:
            style = style_of(runs.method, runs.folder)
            curves = [[(p.density, math.sqrt(p.error)) for p in run.paths if p.layer == layer] for run in runs.runs]
            # An error of zero (nothing or only dead weights removed) has no place on a logarithmic axis.
            points = [point for point in _average(curves) if point.low > 0]
            if not points:
                continue
            removed = [100 * (1 - point.key) for point in points]
            axes.plot([point.mean for point in points], removed, color=style.color, label=style.label)
            bounds = [point.low for point in points], [point.high for point in points]
            axes.fill_betweenx(removed, *bounds, color=style.color, alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel="tolerable error √E", title=layer, ylim=(0, 102))
    for axes in panels[::_COLUMNS]:
        axes.set_ylabel("weights removed (%)")
    _legend(figure, panels[0])
    caption = (
        "How many of a layer's weights a method removes before √E exceeds the value on the horizontal axis, E being "
        "the squared change of the layer's pre-activations, summed over units, mean over samples. "
        f"Further to the left is better.{note}"
    )
    title = "Figure 5: tolerable error and pruning ratio, layer by layer"
    return Drawing(_stem(5, experiment), title, caption, figure, columns, records)


@dataclass(frozen=True)
class _Point:
    """Mean, least and largest value over the seeds at one key."""

    key: Any
    mean: float
    low: float
    high: float


def _average(curves: Sequence[Sequence[tuple[Hashable, float]]]) -> list[_Point]:
    """Average curves of (key, value) over the seeds, at the keys that all of them hold, in the first one's order."""
    seeds = [dict(curve) for curve in curves if curve]
    if not seeds:
        return []
    shared = [key for key in seeds[0] if all(key in seed for seed in seeds)]
    values = {key: [seed[key] for seed in seeds] for key in shared}
    return [_Point(key, math.fsum(v) / len(v), min(v), max(v)) for key, v in values.items()]


def _draw_line(axes: Axes, runs: MethodRuns, x: Sequence[float], points: Sequence[_Point]) -> None:
    """Draw one method's line with its band over the seeds; nothing where it has no points."""
    if not points:
        return
    style = style_of(runs.method, runs.folder)
    means = [point.mean for point in points]
    axes.plot(x, means, color=style.color, marker=style.marker, markevery=0.06, label=style.label)
    low, high = [point.low for point in points], [point.high for point in points]
    axes.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)


def _distinct(experiment: Experiment, curve: str) -> tuple[list[MethodRuns], str]:
    """Leave out methods whose curves equal an earlier method's (one criterion, used twice), and a sentence on them."""
    distinct: list[MethodRuns] = []
    notes = []
    for runs in experiment.methods:
        curves = [getattr(run, curve) for run in runs.runs]
        twin = next((other for other in distinct if [getattr(run, curve) for run in other.runs] == curves), None)
        if twin is None:
            distinct.append(runs)
        elif any(curves):
            labels = [style_of(entry.method, entry.folder).label for entry in (runs, twin)]
            notes.append(f" {labels[0]} has the same curve as {labels[1]}.")
    return distinct, "".join(notes)


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend above the axes, where it hides no line."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)


def _canvas(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, further ones in the next row, without any window or global state."""
    rows, columns = math.ceil(panels / _COLUMNS), min(panels, _COLUMNS)
    figure = Figure(figsize=(6.4, 4.0) if panels == 1 else (3.4 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for unused in grid[panels:]:
        unused.remove()
    return figure, list(grid[:panels])


def _stem(number: int, experiment: Experiment) -> str:
    """The name of a figure's files; experiments other than the one that the paper draws are named in it."""
    own = FIGURE_NETWORK[number] == experiment.name
    return f"figure{number}" if own else f"figure{number}-{experiment.name}"


def _place(runs: MethodRuns, run: Run) -> dict[str, Any]:
    return dict(zip(_PLACE, (runs.experiment, runs.method, runs.folder, run.seed), strict=True))


def _point_records(experiment: Experiment, curve: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """One record per point of a curve (an attribute of Run), over all methods and seeds."""
    return [
        {**_place(runs, run), **{column: getattr(point, column) for column in columns}}
        for runs in experiment.methods
        for run in runs.runs
        for point in getattr(run, curve)
    ]
