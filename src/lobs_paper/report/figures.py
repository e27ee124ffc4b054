"""Draws the paper's figures with Matplotlib from what the runs measured.

Every function takes one experiment and gives a Drawing, or None where the runs hold nothing to draw. A method keeps
its colour, marker and line in all figures (methods.py). What all figures share stands in drawing.py and selection.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import matplotlib
from matplotlib.ticker import FuncFormatter

from lobs_paper.report.drawing import (
    COLUMNS,
    SETTINGS,
    Drawing,
    average,
    average_or_first,
    canvas,
    draw_line,
    error_axis,
    legend,
    mark_error,
)
from lobs_paper.report.figures_density import density_figure
from lobs_paper.report.figures_methods import bound_figure, retraining_figure
from lobs_paper.report.methods import style_of
from lobs_paper.report.paper import figure_stem
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import (
    PLACE,
    distinct,
    label_of,
    over_seeds_note,
    panels_note,
    panels_of,
    place,
    point_records,
    samples_note,
)
from lobs_paper.report.statistic import over_seeds

# The paper's Figure 3 claims more than 90% of the sensitivities below this.
_SMALL_SENSITIVITY = 1e-3
# Its tail towards zero, the weights of inputs that are almost always zero, is cut off where it is this thin.
_TAIL_PERCENT = 0.1
# Retraining curves are linear up to so many iterations, so that the start has its place, logarithmic beyond.
_LINEAR = 10
_MOST_PANELS = 12


def draw_all(experiment: Experiment) -> list[Drawing]:
    """Draw every figure that the experiment has the data for: the paper's in its order between those of ours alone."""
    with matplotlib.rc_context(SETTINGS):
        drawings = [draw(experiment) for draw in _FIGURES]
    return [drawing for drawing in drawings if drawing]


def figure2(experiment: Experiment) -> Drawing | None:
    """Test accuracy while the first layer alone is pruned from 0 to 100%, one line per method."""
    columns = (*PLACE, "density", "test_accuracy_percent")
    records = point_records(experiment, "first_layer_curve", columns[len(PLACE) :])
    if not records:
        return None
    figure, (axes, detail) = canvas(2, width=4.4)
    kept, note = distinct(experiment, "first_layer_curve")
    single = []
    for runs in kept:
        curves = [[(p.density, p.test_accuracy_percent) for p in run.first_layer_curve] for run in runs.runs]
        points, alone = average_or_first(curves)
        single += [label_of(runs)] if alone else []
        for panel in (axes, detail):
            draw_line(panel, runs, [100 * (1 - point.key) for point in points], points)
    axes.set(xlabel="weights removed from the first layer (%)", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 100.5), ylim=(0, 102))
    detail.set(xlabel="the last 20%", xlim=(80, 100.2), xticks=range(80, 101, 5))
    legend(figure, axes)
    return Drawing(
        stem=figure_stem(2, experiment.name),
        title="Figure 2: test accuracy while the first layer is pruned",
        caption="Only the first layer is pruned, without retraining; the other layers stay dense."
        + over_seeds_note(kept, experiment)
        + (f" {', '.join(single)}: the first seed alone, whose densities the others do not share." if single else "")
        + note,
        figure=figure,
        columns=columns,
        records=records,
    )


def figure3(experiment: Experiment) -> Drawing | None:
    """Distribution of the first layer's sensitivities, one outline per method, of the first seed that has any.

    Args:
        experiment: what was measured.

    Returns:
        The drawing, with the numbers of all seeds; None without any histogram.
    """
    figure, (axes,) = canvas()
    records: list[dict[str, Any]] = []
    shares, starts = [], []
    names = ("log10_from", "log10_to", "weights")
    kept, note = distinct(experiment, "histogram")
    drawn = {(runs.method, runs.folder) for runs in kept}
    for runs in experiment.methods:
        known = [(run, run.histogram) for run in runs.runs if run.histogram and any(run.histogram.counts)]
        for run, histogram in known:
            bins = zip(histogram.log10_edges[:-1], histogram.log10_edges[1:], histogram.counts, strict=True)
            records += [{**place(runs, run), **dict(zip(names, values, strict=True))} for values in bins]
        if not known or (runs.method, runs.folder) not in drawn:
            continue
        histogram = known[0][1]
        style = style_of(runs.method, runs.folder)
        total = sum(histogram.counts)
        heights = [100 * count / total for count in histogram.counts]
        edges = [10**edge for edge in histogram.log10_edges]
        starts.append(edges[next(i for i, share in enumerate(itertools.accumulate(heights)) if share >= _TAIL_PERCENT)])
        shares.append(f"{style.label}: {100 * histogram.share_below:.1f}% below {_SMALL_SENSITIVITY:g}")
        axes.stairs(heights, edges, fill=True, color=style.color, alpha=0.25)
        axes.stairs(heights, edges, color=style.color, linewidth=1.5, linestyle=style.line, label=shares[-1])
    if not records:
        return None
    axes.set_xlim(min(starts), max(axes.get_xlim()[1], 3 * _SMALL_SENSITIVITY))
    axes.axvline(_SMALL_SENSITIVITY, color="black", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="sensitivity of a weight of the first layer", ylabel="share of the weights (%)")
    legend(figure, axes)
    first_seed = " Each method's first seed." if any(len(runs.runs) > 1 for runs in kept) else ""
    caption = (
        f"The dashed line marks {_SMALL_SENSITIVITY:g}: the paper finds more than 90% of the sensitivities below it. "
        f"Ours: {'; '.join(shares)}. Up to {_TAIL_PERCENT:g}% lie further to the left.{first_seed}{note}"
    )
    return Drawing(
        stem=figure_stem(3, experiment.name),
        title="Figure 3: distribution of the first layer's sensitivities",
        caption=caption,
        figure=figure,
        columns=(*PLACE, *names),
        records=records,
    )


def figure4(experiment: Experiment) -> Drawing | None:
    """Test error during retraining, one line per method, an iterative method's rounds one after the other.

    Many methods are drawn in two panels: the layer-wise ones, and their competitors with L-OBS.

    Args:
        experiment: what was measured.

    Returns:
        The drawing; None without any curve.
    """
    columns = (*PLACE, "round", "iteration", "train_loss", "test_error_percent")
    records = point_records(experiment, "retrain_curve", columns[len(PLACE) :])
    if not any(record["iteration"] for record in records):
        return None
    methods = [runs for runs in experiment.methods if any(run.retrain_curve for run in runs.runs)]
    before = {run.seed: run.retrain.error_before_percent for runs in methods for run in runs.runs if run.retrain}
    original = over_seeds(before.values())
    groups = panels_of(methods)
    figure, panels = canvas(len(groups), width=5.0, height=5.0, one_scale=False)
    for axes, group in zip(panels, groups, strict=True):
        last = 1.0
        for runs in group:
            curves = [
                # No place on a logarithmic axis: errors of zero; and those that were not measured.
                [((p.round, p.iteration), p.test_error_percent) for p in run.retrain_curve if p.test_error_percent]
                for run in runs.runs
            ]
            points = average(curves)
            draw_line(axes, runs, [point.key[1] for point in points], points, log_from=_LINEAR)
            last = max([last, *(point.key[1] for point in points)])
        mark_error(axes, original.mean if original else None, "original error")
        axes.set_xscale("symlog", linthresh=_LINEAR)
        axes.set(xlabel="iterations of retraining (minibatches)", xlim=(0, 1.15 * last + 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    error_axis(panels)
    legend(figure, *panels)
    surgery = [label_of(runs) for runs in methods if runs.method == "dns"]
    caption = (
        "Retraining with the masks fixed, beginning right after pruning; logarithmic axes. "
        "Where an iterative method jumps, a new round of pruning begins."
        f"{' DNS changes its masks while it trains.' if surgery else ''}"
        f"{panels_note(groups)}{' Each panel has its own scales.' if len(groups) > 1 else ''}"
        f"{over_seeds_note(methods, experiment)}"
    )
    title = "Figure 4: test error while the pruned network is retrained"
    return Drawing(figure_stem(4, experiment.name), title, caption, figure, columns, records)


def figure5(experiment: Experiment) -> Drawing | None:
    """Share of weights that a tolerable error sqrt(E) allows to remove: a panel per layer, a line per method."""
    columns = (*PLACE, "layer", "density", "error", "relative_error", "sensitivity_threshold")
    records = point_records(experiment, "paths", columns[len(PLACE) :])
    if not records:
        return None
    layers, chosen = _panel_layers(experiment, list(dict.fromkeys(record["layer"] for record in records)))
    records = [record for record in records if record["layer"] in layers]
    figure, panels = canvas(len(layers))
    kept, note = distinct(experiment, "paths")
    for axes, layer in zip(panels, layers, strict=True):
        for runs in kept:
            curves = [[(p.density, math.sqrt(p.error)) for p in run.paths if p.layer == layer] for run in runs.runs]
            # An error of zero (nothing or only dead weights removed) has no place on a logarithmic axis.
            points = [point for point in average(curves) if point.low > 0]
            draw_line(axes, runs, [100 * (1 - point.key) for point in points], points, across="y")
        axes.set(xscale="log", xlabel="tolerable error √E", title=layer, ylim=(0, 102))
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("weights removed (%)")
    legend(figure, *panels)
    caption = (
        "How many of a layer's weights a method removes before √E exceeds the value on the horizontal axis, E being "
        f"the squared change of the layer's pre-activations, {samples_note(experiment)}. "
        f"Further to the left is better.{chosen}{over_seeds_note(kept, experiment)}{note}"
    )
    title = "Figure 5: tolerable error and pruning ratio, layer by layer"
    return Drawing(figure_stem(5, experiment.name), title, caption, figure, columns, records)


def _panel_layers(experiment: Experiment, names: list[str]) -> tuple[list[str], str]:
    """The layers that get a panel, and a sentence where these are not all: then those with the most weights."""
    if len(names) <= _MOST_PANELS:
        return names, ""
    layers = (layer for runs in experiment.methods for run in runs.runs for layer in run.layers)
    weights = {layer.name: math.prod(layer.shape) for layer in layers}
    largest = sorted(names, key=lambda name: -weights.get(name, 0))[:_MOST_PANELS]
    note = f" Drawn are the {_MOST_PANELS} layers with the most weights, of {len(names)}."
    return [name for name in names if name in largest], note


_FIGURES = (density_figure, figure2, figure3, figure4, figure5, bound_figure, retraining_figure)
