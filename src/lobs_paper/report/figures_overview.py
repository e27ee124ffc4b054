"""Draws the picture at the top: what the methods leave without retraining, and where the paper's L-OBS stands."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from lobs_paper.report import paper, summary
from lobs_paper.report.drawing import SETTINGS, Drawing, canvas, draw_line, error_axis, legend
from lobs_paper.report.figures_density import density_axis, over_seeds_at_each
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import PLACE, point_records
from lobs_paper.report.statistic import over_seeds

STEM = "overview"
# Few enough to be understood at once: the paper's method, what is exact, and the plain baseline.
_METHODS = ("magnitude", "lobs", "exact_obs", "exact_obs_sequential")
_PANELS = 3
_COLUMNS = ("density", "test_error_percent")


def draw_overview(experiments: Sequence[Experiment]) -> Drawing | None:
    """Draw test error against density for the first networks that the paper has, a panel each.

    Args:
        experiments: what was measured.

    Returns:
        The drawing; None without a curve of L-OBS.
    """
    shown = [entry for entry in experiments if entry.name in paper.DATA and _has_curve(entry, "lobs")][:_PANELS]
    if not shown:
        return None
    with matplotlib.rc_context(SETTINGS):
        figure, panels = canvas(len(shown), width=4.6, height=4.2, one_scale=False)
        for axes, experiment in zip(panels, shown, strict=True):
            densities: list[float] = []
            for method in _METHODS:
                for runs in (runs for runs in experiment.methods if runs.method == method):
                    points = over_seeds_at_each(runs)
                    draw_line(axes, runs, [100 * point.key for point in points], points, marked=1)
                    densities += [100 * point.key for point in points]
            row = next((row for row in paper.TABLE1 if (row.experiment, row.method) == (experiment.name, "lobs")), None)
            if row and row.after_pruning:
                label = f"the paper's L-OBS ({paper.RECALLED.removeprefix('paper ').strip('()')})"
                axes.plot(row.density, row.after_pruning, "D", color="black", markersize=8, zorder=5, label=label)
            dense = over_seeds(train.test_error_percent for train in experiment.trains.values())
            if dense:
                axes.axhline(dense.mean, color="black", linewidth=1, linestyle=":", label="dense network")
            density_axis(axes, min(densities), max(densities))
            axes.set_title(summary.title(experiment), fontsize=11)
        error_axis(panels)
        legend(figure, *panels)
    columns = (*PLACE, *_COLUMNS)
    records = [
        record
        for experiment in shown
        for record in point_records(experiment, "density_curve", _COLUMNS)
        if record["method"] in _METHODS
    ]
    caption = (
        "Test error when the whole network is cut to a density at once, **without any retraining**: magnitude, L-OBS "
        "and OBS done exactly inside each layer. Logarithmic axes, less is kept to the right."
    )
    return Drawing(STEM, "Pruned without retraining", caption, figure, columns, records)


def _has_curve(experiment: Experiment, method: str) -> bool:
    return any(over_seeds_at_each(runs) for runs in experiment.methods if runs.method == method)
