"""The table of all figures: a new one is one more entry of `NETWORK` or `COMMON` and a function that draws it.

Data functions give the rows that a figure shows, which are written beside it as CSV. How they are drawn stands in
network_figures.py and benchmark_figures.py, what all figures share in drawing.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from pandas import DataFrame

from lobs_paper.report import benchmark_figures as benchmarks
from lobs_paper.report import network_figures as networks
from lobs_paper.report import paper
from lobs_paper.report.drawing import SETTINGS, Drawing
from lobs_paper.report.frame import AFTER_REFIT, KEYS, METHOD, TOP5, Results
from lobs_paper.report.table1 import compare

OVERVIEW = "overview"
_ERROR = "test_error_percent"
_MOST_PANELS = 12
# The picture at the top is to be understood at once: the paper's method, what is exact, and the plain baseline.
_OVERVIEW_METHODS = ("magnitude", "lobs", "exact_obs", "exact_obs_sequential")
_OVERVIEW_PANELS = 3


@dataclass(frozen=True)
class Entry:
    """One line of the table of figures.

    Attributes:
        stem: of the figure's files, `{}` in it the experiment; or the number of the paper's figure, one per network.
        title: heading on the page.
        data: gives the rows that are drawn, from what was measured and from the folder of the benchmarks' results;
            without rows there is no figure. All columns but the label are written as CSV.
        draw: gives the figure and its caption.
        ours: whether the CSV is the figure's to write; otherwise a benchmark has written it.
    """

    stem: str | int
    title: str
    data: Callable[[Results, Path], DataFrame]
    draw: Callable[[Results, DataFrame], tuple[Figure, str]]
    ours: bool = True


def draw(entries: Iterable[Entry], results: Results, reports_dir: Path) -> list[Drawing]:
    """Draw the figures that there is data for.

    Args:
        entries: `NETWORK` with the results of one experiment, or `COMMON` with all of them.
        results: what was measured.
        reports_dir: where the benchmarks wrote to.

    Returns:
        The drawings, in the order of the entries.
    """
    drawings = []
    for entry in entries:
        data = entry.data(results, reports_dir)
        if data.empty:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure, caption = entry.draw(results, data)
        name = data["experiment"].iloc[0] if "experiment" in data else ""
        stem = entry.stem.format(name) if isinstance(entry.stem, str) else paper.figure_stem(entry.stem, name)
        written = data.drop(columns="label", errors="ignore") if entry.ours else None
        drawings.append(Drawing(stem, entry.title, caption, figure, written))
    return drawings


def draw_benchmark(stem: str, reports_dir: Path) -> Drawing | None:
    """Draw a benchmark's figure; None where its results are not there."""
    nothing: Any = None  # which its functions do not look at
    return next(iter(draw([entry for entry in COMMON if entry.stem == stem], nothing, reports_dir)), None)


def _density(results: Results, _: Path) -> DataFrame:
    """The curves over densities, with errors among the five largest outputs and after a refit where measured."""
    curve = results.density_curve
    return curve.drop(columns=[name for name in (TOP5, *AFTER_REFIT) if curve[name].isna().all()])


def _first_layer(results: Results, _: Path) -> DataFrame:
    return results.first_layer_curve


def _sensitivities(results: Results, _: Path) -> DataFrame:
    return results.sensitivities.drop(columns="share_below")


def _retraining_curve(results: Results, _: Path) -> DataFrame:
    curve = results.retrain_curve
    return curve if curve["iteration"].any() else curve.iloc[:0]


def _paths(results: Results, _: Path) -> DataFrame:
    """The paths of the layers that have a panel: those with the most weights, where there are many."""
    names = results.paths["layer"].drop_duplicates()
    layers = results.layers.drop_duplicates("layer").set_index("layer")["shape"]
    weights = names.map(layers).fillna("0").map(lambda shape: math.prod(map(int, shape.split("x"))))
    largest = names[weights.sort_values(ascending=False, kind="stable").index[:_MOST_PANELS]]
    return results.paths[results.paths["layer"].isin(largest)]


def _bounds(results: Results, _: Path) -> DataFrame:
    names = {"evaluate.pruned.output_error": "output_error", "evaluate.pruned.bound": "bound"}
    runs = results.runs.rename(columns=names)[[*KEYS, *names.values()]]
    return runs[(runs[list(names.values())] > 0).all(axis=1)]


def _retraining(results: Results, _: Path) -> DataFrame:
    """A row per retrained method in the order of Table 1, means over the seeds, beside the paper's errors."""
    rows = compare(results)
    found = {"density": "density_percent", "iterations": "iterations"}
    errors = {f"error_{stage}": f"{stage}_percent" for stage in networks.STAGES}
    rows = rows[rows[[*found, *errors]].map(bool).all(axis=1)]
    data = rows[METHOD]
    for name, column in (found | errors).items():
        data = data.assign(**{column: rows[name].map(lambda value: value.mean)})
        if name in errors:
            data = data.assign(**{column.replace("_percent", "_paper_percent"): rows[f"paper_{name}"].astype(float)})
    return data


def _overview(results: Results, _: Path) -> DataFrame:
    """The curves of a few methods on the first networks that the paper has and that L-OBS was run on."""
    curve = results.density_curve[[*KEYS, "density", _ERROR]]
    known = curve[(curve["method"] == "lobs") & curve["experiment"].isin(list(paper.DATA)) & (curve[_ERROR] > 0)]
    shown = known["experiment"].unique()[:_OVERVIEW_PANELS]
    return curve[curve["experiment"].isin(shown) & curve["method"].isin(_OVERVIEW_METHODS)]


def _largest(results: Results, _: Path) -> DataFrame:
    """The curves of the network with the most parameters that has any; by top-5 errors where these were measured."""
    parameters = results.dense.groupby("experiment")["train.parameters"].max().fillna(0)
    names = results.density_curve["experiment"].unique()
    largest = max(names, key=lambda name: parameters.get(name, 0), default="")
    curve = results.density_curve[results.density_curve["experiment"] == largest]
    return curve[[*KEYS, "density", TOP5 if curve[TOP5].notna().all() else _ERROR]]


# Figures of one network: the paper's in its order, between those of ours alone.
NETWORK = (
    Entry("density-{}", "Test error against density, without retraining", _density, networks.density),
    Entry(2, "Figure 2: test accuracy while the first layer is pruned", _first_layer, networks.first_layer),
    Entry(3, "Figure 3: distribution of the first layer's sensitivities", _sensitivities, networks.sensitivities),
    Entry(
        4, "Figure 4: test error while the pruned network is retrained", _retraining_curve, networks.retraining_curve
    ),
    Entry(5, "Figure 5: tolerable error and pruning ratio, layer by layer", _paths, networks.paths),
    Entry("bound-{}", "Bound against measured output error", _bounds, networks.bounds),
    Entry("retraining-{}", "Before and after retraining", _retraining, networks.retraining),
)
_MEMORY = "Figure 6 (b): peak memory against the number of calibration samples"
_SOLVERS = "Layer error against seconds, for every solver"
# Figures over all networks, and those of benchmarks.
COMMON = (
    Entry(OVERVIEW, "Pruned without retraining", _overview, networks.overview),
    Entry("figure1", "Figure 1: shape of the Hessian", benchmarks.read_hessian, benchmarks.hessian, ours=False),
    Entry("figure6a", "Figure 6 (a): accuracy against compression ratio", _largest, networks.largest),
    Entry("memory", _MEMORY, benchmarks.read_memory, benchmarks.memory, ours=False),
    Entry("error-seconds", _SOLVERS, benchmarks.read_solvers, benchmarks.solvers),
)
