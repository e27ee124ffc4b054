"""Draws one network's methods against each other: the bound beside the measured error, and what retraining changes."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

from lobs_paper.report.comparison import compare
from lobs_paper.report.drawing import ERROR_TICKS, Drawing, canvas, legend
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import PLACE, place
from lobs_paper.report.statistic import over_seeds

_STAGES = ("after_pruning", "after_retraining")
_CAPTION = (
    "Hollow: right after (the last round of) pruning; filled: after retraining with the masks fixed, for the "
    "iterations beside the name; means over the seeds. Diamonds: the paper's, where it has such a row, at its own "
    "number of iterations."
)


def bound_figure(experiment: Experiment) -> Drawing | None:
    """Draw Theorem 3.2's bound over the measured output error, a mark per method and seed.

    Args:
        experiment: what was measured.

    Returns:
        The drawing; None where neither is known of any run.
    """
    names = ("output_error", "bound")
    records = [
        {**place(runs, run), **{name: getattr(run.evaluate, name) for name in names}}
        for runs in experiment.methods
        for run in runs.runs
        if run.evaluate and run.evaluate.output_error and run.evaluate.bound
    ]
    if not records:
        return None
    figure, (axes,) = canvas()
    figure.set_size_inches(6.4, 5.6)
    for runs in experiment.methods:
        mine = [entry for entry in records if (entry["method"], entry["folder"]) == (runs.method, runs.folder)]
        if mine:
            look = {**style_of(runs.method, runs.folder).plot, "linestyle": "none", "markersize": 6}
            axes.plot([entry["output_error"] for entry in mine], [entry["bound"] for entry in mine], **look)
    axes.set(xscale="log", yscale="log", xlabel="measured output error", ylabel="Theorem 3.2's bound")
    errors = [entry["output_error"] for entry in records]
    axes.plot([min(errors), max(errors)], [min(errors), max(errors)], "k:", linewidth=1, label="bound = error")
    legend(figure, axes)
    ratios = [entry["bound"] / entry["output_error"] for entry in records]
    caption = (
        "A mark per method and seed: the distance of the pruned network's outputs from the dense one's (root mean "
        "square over the calibration images, before retraining) and what Theorem 3.2 says that it cannot exceed. "
        f"It is {'above' if min(ratios) >= 1 else 'NOT always above'} the dotted line; the bound is "
        f"{min(ratios):,.3g} to {max(ratios):,.0f} times the error."
    )
    title = "Bound against measured output error"
    return Drawing(f"bound-{experiment.name}", title, caption, figure, (*PLACE, *names), records)


def retraining_figure(experiment: Experiment) -> Drawing | None:
    """Draw the error right after pruning and after retraining, a row per method, with the iterations between.

    Args:
        experiment: what was measured.

    Returns:
        The drawing; None where nothing was retrained.
    """
    records = _before_and_after(experiment)
    if not records:
        return None
    figure, (axes,) = canvas()
    figure.set_size_inches(7.6, 1.7 + 0.3 * len(records))
    for height, record in enumerate(reversed(records)):
        color = style_of(record["method"], record["folder"]).color
        ends = [record[f"{stage}_percent"] for stage in _STAGES]
        axes.plot(ends, [height, height], color=color, linewidth=2, alpha=0.5)
        papers = [record[f"{stage}_paper_percent"] for stage in _STAGES]
        for ours, published, filled, stage in zip(ends, papers, (False, True), _STAGES, strict=True):
            name = stage.replace("_", " ")
            first: dict[str, Any] = {} if height else {"label": name}
            axes.plot(ours, height, "o", color=color, markerfacecolor=color if filled else "white", **first)
            look: dict[str, Any] = {"color": "black", "markerfacecolor": "black" if filled else "none", "markersize": 5}
            axes.plot([] if published is None else published, [] if published is None else height, "d", **look)
            if not height:
                axes.plot([], [], "d", label=f"the paper, {name}", **look)
    axes.set_yticks(range(len(records)), [_row_name(record) for record in reversed(records)])
    axes.set(xscale="log", xlabel="test error (%)")
    limits = axes.get_xlim()
    axes.set_xticks(ERROR_TICKS)
    axes.set_xlim(limits)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    dense = over_seeds(train.test_error_percent for train in experiment.trains.values())
    if dense:
        axes.axvline(dense.mean, color="black", linewidth=1, linestyle=":", label=f"dense network ({dense.mean:.2f}%)")
    legend(figure, axes)
    title, stem = "Before and after retraining", f"retraining-{experiment.name}"
    return Drawing(stem, title, _CAPTION, figure, tuple(records[0]), records)


def _before_and_after(experiment: Experiment) -> list[dict[str, Any]]:
    """A record per method that was retrained: means over the seeds, and the paper's errors where it has the row."""
    records = []
    for row in compare(experiment):
        if row.folder is None or not (row.density and row.after_pruning and row.after_retraining and row.iterations):
            continue
        place = {"experiment": experiment.name, "method": row.method, "folder": row.folder}
        record = {**place, "density_percent": row.density.mean, "iterations": row.iterations.mean}
        for stage, ours in zip(_STAGES, (row.after_pruning, row.after_retraining), strict=True):
            record[f"{stage}_percent"] = ours.mean
            record[f"{stage}_paper_percent"] = getattr(row.paper, stage, None)
        records.append(record)
    return records


def _row_name(record: dict[str, Any]) -> str:
    label = style_of(record["method"], record["folder"]).label
    return f"{label}, {record['density_percent']:.3g}%, {record['iterations']:,.0f} it."
