"""Draws the error of the whole network over densities, without any retraining, one line per method."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from lobs_paper.report.density import nearest
from lobs_paper.report.drawing import Drawing, Point, canvas, draw_line, error_axis, legend, mark_error
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import PLACE, distinct, over_seeds_note, panels_note, panels_of, point_records
from lobs_paper.report.statistic import over_seeds

_TICKS = (100, 70, 50, 30, 20, 15, 10, 7, 5, 3, 2, 1.5, 1, 0.7, 0.5)
# Room beside the first and the last density, as a factor.
_ROOM = 1.12


def density_figure(experiment: Experiment) -> Drawing | None:
    """Draw test error against density: many methods in two panels, the layer-wise ones and their competitors.

    Args:
        experiment: what was measured.

    Returns:
        The drawing; None without any curve.
    """
    columns: tuple[str, ...] = (*PLACE, "density", "test_error_percent", "output_error")
    curves = (run.density_curve for runs in experiment.methods for run in runs.runs)
    if any(point.test_top5_error_percent is not None for curve in curves for point in curve):
        columns += ("test_top5_error_percent",)
    records = point_records(experiment, "density_curve", columns[len(PLACE) :])
    if not records:
        return None
    kept, note = distinct(experiment, "density_curve")
    groups = panels_of(kept)
    figure, panels = canvas(len(groups), width=5.0, height=5.0)
    dense = over_seeds(train.test_error_percent for train in experiment.trains.values())
    densities = [100 * record["density"] for record in records if record["density"] > 0]
    for axes, group in zip(panels, groups, strict=True):
        for runs in group:
            points = over_seeds_at_each(runs)
            draw_line(axes, runs, [100 * point.key for point in points], points, marked=1)
        mark_error(axes, dense.mean if dense else None, "dense network")
        density_axis(axes, min(densities), max(densities))
    error_axis(panels)
    legend(figure, *panels)
    caption = (
        "The whole network is cut from dense to each density at once, by the method's own criterion and its own way of "
        "sharing the budget out between the layers, without retraining; of an iterative method, too, this is one cut. "
        f"Logarithmic axes; less is kept to the right.{panels_note(groups)}{over_seeds_note(kept, experiment)}"
        f"{_dense_note(experiment, kept)}{note}"
    )
    title = "Test error against density, without retraining"
    return Drawing(f"density-{experiment.name}", title, caption, figure, columns, records)


def _dense_note(experiment: Experiment, drawn: list[MethodRuns]) -> str:
    """That lines of fewer seeds do not begin at the mean over all dense networks; empty where there are none."""
    fewer = any(len(runs.runs) < len(experiment.trains) for runs in drawn)
    return " The dotted line is the mean over all dense networks; a line begins at those of its own seeds." * fewer


def over_seeds_at_each(runs: MethodRuns) -> list[Point]:
    """Average a method's curves over its seeds, whose densities may differ a little.

    Args:
        runs: of the method.

    Returns:
        A point, its key the mean density, at every density that all seeds have; errors of zero, which have no place
        on a logarithmic axis, are left out.
    """
    curves = [run.density_curve for run in runs.runs if run.density_curve]
    found = []
    for reference in curves[0] if curves else ():
        points = [point for curve in curves if reference.density > 0 and (point := nearest(curve, reference.density))]
        errors = [point.test_error_percent for point in points]
        if len(points) == len(curves) and min(errors) > 0:
            density = math.fsum(point.density for point in points) / len(points)
            found.append(Point(density, math.fsum(errors) / len(errors), min(errors), max(errors)))
    return found


def density_axis(axes: Axes, low: float, high: float) -> None:
    """Make the horizontal axis that of densities in percent: logarithmic, with plain numbers, less to the right."""
    axes.set(xscale="log", xlabel="density (% of the weights kept)", xlim=(high * _ROOM, low / _ROOM))
    axes.set_xticks([tick for tick in _TICKS if low / _ROOM <= tick <= high * _ROOM])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
