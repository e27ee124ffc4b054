"""Pruning without retraining: the error of the whole network, cut at once to some densities, one row per method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lobs_paper.report.results import DensityPoint, Experiment, MethodRuns
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import Statistic, fixed, over_seeds
from lobs_paper.report.tables import Record, Row, Table, mean_and_deviation

# The columns of the table, percent, of a network that has a point at one of them.
DENSITIES = (7.0, 5.0, 3.5, 3.0, 2.0, 1.5, 0.9)
# A point counts as one at a density from which it differs by at most this share of it.
NEAR = 0.02

COLUMNS = (
    *("experiment", "method", "folder", "label", "density_percent", "seeds"),
    *("density_reached_percent", "test_error_percent", "test_error_deviation"),
    *("output_error", "output_error_deviation"),
)


def nearest(curve: Sequence[DensityPoint], density: float) -> DensityPoint | None:
    """Give the point of a curve that was measured at a density, or as near to it as counts as the same.

    Args:
        curve: of one seed.
        density: share of weights kept, above 0.

    Returns:
        The nearest point; None where it is further away than `NEAR`.
    """
    found = min(curve, key=lambda point: abs(point.density - density), default=None)
    return found if found and abs(found.density - density) <= NEAR * density else None


def at_density(runs: MethodRuns, density: float) -> list[DensityPoint]:
    """Give the points at a density, one per seed that has one."""
    points = (nearest(run.density_curve, density) for run in runs.runs)
    return [point for point in points if point]


def error_at(runs: MethodRuns, density: float) -> Statistic | None:
    """Give the test error at a density over the seeds, percent; None where it was not measured."""
    return over_seeds(point.test_error_percent for point in at_density(runs, density))


def densities_of(experiment: Experiment) -> tuple[float, ...]:
    """Give the densities that the table of a network shows, percent.

    Returns:
        `DENSITIES` where a curve of the network has a point at one of them; else the densities that were measured, to
        two digits, from the largest to the smallest: a network that cannot do without half of its weights.
    """
    curves = [run.density_curve for runs in experiment.methods for run in runs.runs]
    if any(nearest(curve, percent / 100) for curve in curves for percent in DENSITIES):
        return DENSITIES
    return tuple(sorted({float(f"{100 * point.density:.2g}") for curve in curves for point in curve}, reverse=True))


def records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per experiment, method and density of the table; empty fields where nothing was measured."""
    found = []
    for experiment in experiments:
        densities = densities_of(experiment)
        for runs in experiment.methods if densities else ():
            for percent in densities:
                points = at_density(runs, percent / 100)
                reached = over_seeds(100 * point.density for point in points)
                values = (
                    *(experiment.name, runs.method, runs.folder, label_of(runs), percent, len(points)),
                    reached.mean if reached else None,
                    *mean_and_deviation(error_at(runs, percent / 100)),
                    *mean_and_deviation(over_seeds(point.output_error for point in points)),
                )
                found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def table(experiment: Experiment) -> Table:
    """Give the test errors in percent, one row per method; without rows where no curve was measured."""
    densities = densities_of(experiment)
    rows: list[Row] = []
    for runs in experiment.methods if densities else ():
        seeds = sum(bool(run.density_curve) for run in runs.runs)
        rows.append((label_of(runs), str(seeds), *(fixed(error_at(runs, percent / 100)) for percent in densities)))
    return Table(("method", "seeds", *(f"{percent:g}%" for percent in densities)), rows)
