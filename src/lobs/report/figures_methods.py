"""Draws one network's methods against each other: the bound beside the measured error, and what retraining changes."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, NullLocator

from lobs.report.comparison import compare
from lobs.report.drawing import ERROR_TICKS, Drawing, canvas, legend
from lobs.report.methods import style_of
from lobs.report.results import Experiment
from lobs.report.selection import PLACE, place
from lobs.report.statistic import over_seeds

_STAGES = ("after_pruning", "after_retraining")


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
    records = []
    for row in compare(experiment):
        if row.folder is None or not (row.after_pruning and row.after_retraining and row.iterations):
            continue
        published = [(kind, getattr(row.paper, kind, None)) for kind in _STAGES]
        records.append(
            {
                "experiment": experiment.name,
                "method": row.method,
                "folder": row.folder,
                "density_percent": row.density.mean if row.density else None,
                "iterations": row.iterations.mean,
                "after_pruning_percent": row.after_pruning.mean,
                "after_retraining_percent": row.after_retraining.mean,
                **{f"{kind}_paper_percent": value for kind, value in published},
            }
        )
    if not records:
        return None
    figure, (axes,) = canvas()
    figure.set_size_inches(7.6, 1.7 + 0.3 * len(records))
    for height, record in enumerate(reversed(records)):
        look = style_of(record["method"], record["folder"])
        before, after = record["after_pruning_percent"], record["after_retraining_percent"]
        axes.plot([before, after], [height, height], color=look.color, linewidth=2, alpha=0.5)
        first = not height
        axes.plot(
            before, height, "o", color=look.color, markerfacecolor="white", label="after pruning" if first else None
        )
        axes.plot(after, height, "o", color=look.color, label="after retraining" if first else None)
        papers = [record[f"{kind}_paper_percent"] for kind in _STAGES]
        for value, filled in zip(papers, ("none", "black"), strict=True):
            if value is not None:
                axes.plot(value, height, "d", color="black", markerfacecolor=filled, markersize=5)
    axes.plot([], [], "d", color="black", markerfacecolor="none", label="the paper, after pruning")
    axes.plot([], [], "d", color="black", label="the paper, after retraining")
    names = [f"{_label(record)}, {record['iterations']:,.0f} it." for record in reversed(records)]
    axes.set_yticks(range(len(records)), names)
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
    caption = (
        "Hollow: right after (the last round of) pruning; filled: after retraining with the masks fixed, for the "
        "iterations beside the name; means over the seeds. Diamonds: the paper's, where it has such a row, at its own "
        "number of iterations."
    )
    columns = tuple(records[0])
    title = "Before and after retraining"
    return Drawing(f"retraining-{experiment.name}", title, caption, figure, columns, records)


def _label(record: dict) -> str:
    return f"{style_of(record['method'], record['folder']).label}, {record['density_percent']:.3g}%"
