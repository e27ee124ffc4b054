"""Draws Figure 6 (a): accuracy against the share of weights kept, for the largest network that was run."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from lobs_paper.report import summary
from lobs_paper.report.density import nearest
from lobs_paper.report.drawing import SETTINGS, Drawing, Point, canvas, draw_line, legend
from lobs_paper.report.figures_density import density_axis
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import PLACE, distinct, over_seeds_note, point_records
from lobs_paper.report.statistic import over_seeds

STEM = "figure6a"
_TITLE = "Figure 6 (a): accuracy against compression ratio"


def draw_largest(experiments: Sequence[Experiment]) -> Drawing | None:
    """Draw the figure; top-5 accuracy where it was measured, top-1 otherwise.

    Args:
        experiments: what was measured.

    Returns:
        The drawing of the network with the most parameters among those that have a curve; None without any.
    """
    with_curve = [entry for entry in experiments if distinct(entry, "density_curve")[0]]
    if not with_curve:
        return None
    experiment = max(with_curve, key=_parameters)
    kept, note = distinct(experiment, "density_curve")
    top5 = all(
        point.test_top5_error_percent is not None for runs in kept for run in runs.runs for point in run.density_curve
    )
    attribute = "test_top5_error_percent" if top5 else "test_error_percent"
    with matplotlib.rc_context(SETTINGS):
        figure, (axes,) = canvas()
        figure.set_size_inches(6.4, 5.6)
        densities: list[float] = []
        for runs in kept:
            points = _accuracies(runs, attribute)
            draw_line(axes, runs, [100 * point.key for point in points], points, marked=1)
            densities += [100 * point.key for point in points]
        dense = over_seeds(getattr(train, attribute) for train in experiment.trains.values())
        if dense:
            accuracy = 100 - dense.mean
            label = f"dense network ({accuracy:.2f}%)"
            axes.axhline(accuracy, color="black", linewidth=1, linestyle=":", label=label)
        density_axis(axes, min(densities), max(densities))
        axes.set(ylabel=f"{'top-5' if top5 else 'top-1'} test accuracy (%)", ylim=(0, 102))
        legend(figure, axes)
    records = point_records(experiment, "density_curve", ("density", attribute))
    caption = (
        f"The paper draws ResNet-50 on ImageNet. This is {summary.title(experiment)}, the largest network that was run "
        f"here; {'top-5' if top5 else 'top-1'} accuracy without retraining. The compression ratio is the share of "
        f"weights kept, less to the right.{over_seeds_note(kept, experiment)}{note}"
    )
    return Drawing(STEM, _TITLE, caption, figure, (*PLACE, "density", attribute), records)


def _parameters(experiment: Experiment) -> float:
    return max((train.parameters or 0 for train in experiment.trains.values()), default=0)


def _accuracies(runs: MethodRuns, attribute: str) -> list[Point]:
    """Accuracies at every density that all seeds have."""
    curves = [run.density_curve for run in runs.runs if run.density_curve]
    points = []
    for reference in curves[0]:
        found = [point for curve in curves if (point := nearest(curve, reference.density))] if reference.density else []
        values = [100 - getattr(point, attribute) for point in found]
        if len(values) == len(curves):
            points.append(Point(reference.density, sum(values) / len(values), min(values), max(values)))
    return points
