"""How the figures of networks are drawn: each function takes the results and the rows to draw.

A method keeps its colour, marker and line in all of them (methods.py).
"""

from __future__ import annotations

from typing import Any

import numpy
from matplotlib.figure import Figure
from pandas import DataFrame

from lobs_paper.report import paper
from lobs_paper.report.curves import distinct, over_seeds_note, panels_note, panels_of, samples_note, with_refitted
from lobs_paper.report.drawing import (
    COLUMNS,
    at_shared_densities,
    canvas,
    density_axis,
    draw_lines,
    error_axis,
    legend,
    mark_level,
    shared,
)
from lobs_paper.report.frame import Results
from lobs_paper.report.methods import style_of

Drawn = tuple[Figure, str]
STAGES = ("after_pruning", "after_retraining")
_ERROR, _TOP5 = "test_error_percent", "test_top5_error_percent"
# The paper's Figure 3 claims more than 90% of the sensitivities below this.
_SMALL_SENSITIVITY = 1e-3
# Its tail towards zero, the weights of inputs that are almost always zero, is cut off where it is this thin.
_TAIL_PERCENT = 0.1
# Retraining curves are linear up to so many iterations, so that the start has its place, logarithmic beyond; there
# markers stand: one on every point would cover a noisy line.
_LINEAR = 10
_MARKED = [0, *(digit * 10**power for power in range(1, 6) for digit in (1, 2, 5))]


def density(results: Results, data: DataFrame) -> Drawn:
    """Test error against density: many methods in two panels, the layer-wise ones and their competitors."""
    kept, note = distinct(with_refitted(data))
    panels = panels_of(kept)
    figure, axes = canvas(len(panels), (5, 5) if len(panels) > 1 else (6.4, 4.4))
    dense = results.dense["train.test_error_percent"].mean()
    for panel, rows in zip(axes, panels, strict=True):
        draw_lines(panel, at_shared_densities(rows[rows[_ERROR] > 0]), "kept", _ERROR)
        mark_level(panel, dense, f"dense network ({dense:.2f}%)")
        density_axis(panel, 100 * data.loc[data["density"] > 0, "density"])
    error_axis(axes)
    legend(figure)
    fewer = (kept.groupby("label")["seed"].nunique() < results.dense["seed"].nunique()).any()
    own = " The dotted line is the mean over all dense networks; a line begins at those of its own seeds."
    caption = (
        "The whole network is cut from dense to each density at once, by the method's own criterion and its own way of "
        "sharing the budget out between the layers, without retraining; of an iterative method, too, this is one cut. "
        f"Logarithmic axes; less is kept to the right.{panels_note(panels)}{over_seeds_note(kept, results.runs)}"
        f"{own if fewer else ''}{note}"
    )
    return figure, caption


def first_layer(results: Results, data: DataFrame) -> Drawn:
    """Figure 2: test accuracy while the first layer alone is pruned from 0 to 100%, one line per method."""
    figure, (axes, detail) = canvas(2, (4.4, 4.0))
    kept, note = distinct(data)
    points, alone = shared(kept, ["density"])
    for panel in (axes, detail):
        draw_lines(panel, _removed(points), "removed", "test_accuracy_percent", marked=lambda _: 0.08)
    axes.set(xlabel="weights removed from the first layer (%)", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 100.5), ylim=(0, 102))
    detail.set(xlabel="the last 20%", xlim=(80, 100.2), xticks=range(80, 101, 5))
    legend(figure)
    first = f" {', '.join(alone)}: the first seed alone, whose densities the others do not share." if alone else ""
    caption = "Only the first layer is pruned, without retraining; the other layers stay dense."
    return figure, f"{caption}{over_seeds_note(kept, results.runs)}{first}{note}"


def sensitivities(_: Results, data: DataFrame) -> Drawn:
    """Figure 3: distribution of the first layer's sensitivities, one outline per method, of its first seed."""
    figure, (axes,) = canvas()
    kept, note = distinct(data[data.groupby(["label", "seed"])["weights"].transform("sum") > 0])
    shares, starts = [], []
    for (method, folder), seeds in kept.groupby(["method", "folder"], sort=False):
        style, rows = style_of(method, folder), seeds[seeds["seed"] == seeds["seed"].iloc[0]]
        heights = 100 * rows["weights"] / rows["weights"].sum()
        edges = 10.0 ** numpy.append(rows["log10_from"], rows["log10_to"].iloc[-1])
        starts.append(edges[(heights.cumsum() >= _TAIL_PERCENT).argmax()])
        below = heights[10.0 ** rows["log10_to"] <= 1.001 * _SMALL_SENSITIVITY].sum()
        shares.append(f"{style.label}: {below:.1f}% below {_SMALL_SENSITIVITY:g}")
        axes.stairs(heights, edges, fill=True, color=style.color, alpha=0.25)
        axes.stairs(heights, edges, color=style.color, linewidth=1.5, linestyle=style.line, label=shares[-1])
    axes.set_xlim(min(starts), max(axes.get_xlim()[1], 3 * _SMALL_SENSITIVITY))
    axes.axvline(_SMALL_SENSITIVITY, color="black", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="sensitivity of a weight of the first layer", ylabel="share of the weights (%)")
    legend(figure)
    first_seed = " Each method's first seed." if (kept.groupby("label")["seed"].nunique() > 1).any() else ""
    caption = (
        f"The dashed line marks {_SMALL_SENSITIVITY:g}: the paper finds more than 90% of the sensitivities below it. "
        f"Ours: {'; '.join(shares)}. Up to {_TAIL_PERCENT:g}% lie further to the left.{first_seed}{note}"
    )
    return figure, caption


def retraining_curve(results: Results, data: DataFrame) -> Drawn:
    """Figure 4: test error during retraining, one line per method, an iterative method's rounds one after the other."""
    panels = panels_of(data)
    figure, axes = canvas(len(panels), (5, 5) if len(panels) > 1 else (6.4, 4.4), one_scale=False)
    original = results.runs.drop_duplicates("seed")["retrain.error_before_percent"].mean()
    for panel, rows in zip(axes, panels, strict=True):
        # No place on a logarithmic axis: errors of zero; and those that were not measured.
        points, _ = shared(rows[rows[_ERROR] > 0], ["round", "iteration"])
        # A round begins where the last one ended; a hair to the right, for both errors to have a place.
        points = points.assign(place=points["iteration"] + 1e-6 * (points["round"] - 1))
        draw_lines(panel, points, "place", _ERROR, marked=_spaced)
        mark_level(panel, original, f"original error ({original:.2f}%)")
        panel.set_xscale("symlog", linthresh=_LINEAR)
        last = max(1.0, points["iteration"].max())
        panel.set(xlabel="iterations of retraining (minibatches)", xlim=(0, 1.15 * last + 1))
        panel.xaxis.set_major_formatter("{x:g}")
    error_axis(axes)
    legend(figure)
    caption = (
        "Retraining with the masks fixed, beginning right after pruning; logarithmic axes. "
        "Where an iterative method jumps, a new round of pruning begins."
        f"{' DNS changes its masks while it trains.' if 'dns' in set(data['method']) else ''}"
        f"{panels_note(panels)}{' Each panel has its own scales.' if len(panels) > 1 else ''}"
        f"{over_seeds_note(data, results.runs)}"
    )
    return figure, caption


def _spaced(places: numpy.ndarray) -> list[int]:
    """Indices of places that stand well apart on the axis of iterations."""
    return sorted({int(index) for index in numpy.searchsorted(places, _MARKED) if index < len(places)})


def paths(results: Results, data: DataFrame) -> Drawn:
    """Figure 5: share of weights that a tolerable error sqrt(E) allows to remove, a panel per layer."""
    layers, every = data["layer"].unique(), results.paths["layer"].nunique()
    figure, panels = canvas(len(layers), (3.6, 4.0) if len(layers) > 1 else (6.4, 4.4))
    kept, note = distinct(data)
    for axes, layer in zip(panels, layers, strict=True):
        # An error of zero (nothing or only dead weights removed) has no place on a logarithmic axis.
        points, _ = shared(kept[(kept["layer"] == layer) & (kept["error"] > 0)], ["density"])
        points = _removed(points).assign(root=numpy.sqrt(points["error"]))
        draw_lines(axes, points, "root", "removed", orient="y", marked=lambda _: 0.08)
        axes.set(xscale="log", xlabel="tolerable error √E", ylabel="", title=layer, ylim=(0, 102))
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("weights removed (%)")
    legend(figure)
    chosen = f" Drawn are the {len(layers)} layers with the most weights, of {every}." * (every > len(layers))
    caption = (
        "How many of a layer's weights a method removes before √E exceeds the value on the horizontal axis, E being "
        f"the squared change of the layer's pre-activations, {samples_note(results.layers)}. "
        f"Further to the left is better.{chosen}{over_seeds_note(kept, results.runs)}{note}"
    )
    return figure, caption


def _removed(points: DataFrame) -> DataFrame:
    return points.assign(removed=100 * (1 - points["density"]))


def bounds(_: Results, data: DataFrame) -> Drawn:
    """Theorem 3.2's bound over the measured output error, a mark per method and seed."""
    figure, (axes,) = canvas(size=(6.4, 5.6))
    for (method, folder), rows in data.groupby(["method", "folder"], sort=False):
        look = {**style_of(method, folder).plot, "linestyle": "none", "markersize": 6}
        axes.plot(rows["output_error"], rows["bound"], **look)
    axes.set(xscale="log", yscale="log", xlabel="measured output error", ylabel="Theorem 3.2's bound")
    ends = [data["output_error"].min(), data["output_error"].max()]
    axes.plot(ends, ends, "k:", linewidth=1, label="bound = error")
    legend(figure)
    ratios = data["bound"] / data["output_error"]
    caption = (
        "A mark per method and seed: the distance of the pruned network's outputs from the dense one's (root mean "
        "square over the calibration images, before retraining) and what Theorem 3.2 says that it cannot exceed. "
        f"It is {'above' if ratios.min() >= 1 else 'NOT always above'} the dotted line; the bound is "
        f"{ratios.min():,.3g} to {ratios.max():,.0f} times the error."
    )
    return figure, caption


def retraining(results: Results, data: DataFrame) -> Drawn:
    """The error right after pruning and after retraining, a row per method, with the iterations between."""
    figure, (axes,) = canvas(size=(7.6, 1.7 + 0.3 * len(data)))
    rows = data.iloc[::-1].reset_index(drop=True)
    colors = [style_of(row.method, row.folder).color for row in rows.itertuples()]
    axes.hlines(rows.index, *(rows[f"{stage}_percent"] for stage in STAGES), color=colors, linewidth=2, alpha=0.5)
    for stage, face in zip(STAGES, ("white", colors), strict=True):
        name, filled = stage.replace("_", " "), "black" if face is colors else "none"
        axes.scatter(rows[f"{stage}_percent"], rows.index, s=20, facecolor=face, edgecolor=colors, zorder=3)
        look: Any = {"color": "black", "markerfacecolor": filled, "linestyle": "none", "markersize": 5}
        axes.plot([], [], "o", **look, label=name)
        axes.plot(rows[f"{stage}_paper_percent"], rows.index, "d", **look, label=f"the paper, {name}", zorder=4)
    names = [f"{row.label}, {row.density_percent:.3g}%, {row.iterations:,.0f} it." for row in rows.itertuples()]
    axes.set_yticks(rows.index, names)
    axes.set(xlabel="test error (%)")
    dense = results.dense["train.test_error_percent"].mean()
    mark_level(axes, dense, f"dense network ({dense:.2f}%)", across="x")
    error_axis([axes], "x")
    legend(figure)
    caption = (
        "Hollow: right after (the last round of) pruning; filled: after retraining with the masks fixed, for the "
        "iterations beside the name; means over the seeds. Diamonds: the paper's, where it has such a row, at its own "
        "number of iterations."
    )
    return figure, caption


def overview(results: Results, data: DataFrame) -> Drawn:
    """What a few methods leave without retraining, a panel per network, and where the paper's L-OBS stands."""
    names = data["experiment"].unique()
    figure, panels = canvas(len(names), (4.6, 4.2) if len(names) > 1 else (6.4, 4.4), one_scale=False)
    for axes, name in zip(panels, names, strict=True):
        own, rows = results.of(name), data[(data["experiment"] == name) & (data[_ERROR] > 0)]
        points = at_shared_densities(rows)
        draw_lines(axes, points, "kept", _ERROR)
        row = next((row for row in paper.TABLE1 if (row.experiment, row.method) == (name, "lobs")), None)
        if row and row.after_pruning:
            label = f"the paper's L-OBS ({paper.RECALLED.removeprefix('paper ').strip('()')})"
            axes.plot(row.density, row.after_pruning, "D", color="black", markersize=8, zorder=5, label=label)
        mark_level(axes, own.dense["train.test_error_percent"].mean(), "dense network")
        density_axis(axes, points["kept"])
        axes.set_title(own.title, fontsize=11)
    error_axis(panels)
    legend(figure)
    caption = (
        "Test error when the whole network is cut to a density at once, **without any retraining**: magnitude, L-OBS "
        "and OBS done exactly inside each layer. Logarithmic axes, less is kept to the right."
    )
    return figure, caption


def largest(results: Results, data: DataFrame) -> Drawn:
    """Figure 6 (a): accuracy against the share of weights kept; top-5 accuracy where it was measured."""
    own = results.of(data["experiment"].iloc[0])
    column, name = (_TOP5, "top-5") if _TOP5 in data else (_ERROR, "top-1")
    kept, note = distinct(data)
    figure, (axes,) = canvas(size=(6.4, 5.6))
    points = at_shared_densities(kept)
    draw_lines(axes, points.assign(accuracy=100 - points[column]), "kept", "accuracy")
    accuracy = 100 - own.dense[f"train.{column}"].mean()
    mark_level(axes, accuracy, f"dense network ({accuracy:.2f}%)")
    density_axis(axes, points["kept"])
    axes.set(ylabel=f"{name} test accuracy (%)", ylim=(0, 102))
    legend(figure)
    caption = (
        f"The paper draws ResNet-50 on ImageNet. This is {own.title}, the largest network that was run "
        f"here; {name} accuracy without retraining. The compression ratio is the share of "
        f"weights kept, less to the right.{over_seeds_note(kept, own.runs)}{note}"
    )
    return figure, caption
