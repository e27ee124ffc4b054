"""What is reached without labels and without training: exact OBS in its ways through a network, and after a refit."""

from __future__ import annotations

import pandas as pd
from pandas import DataFrame

from lobs_paper.report.curves import steps_of, with_refitted
from lobs_paper.report.frame import AFTER_REFIT, KEYS, METHOD, Results, by_method
from lobs_paper.report.method_tables import at_densities, by_density, density_numbers
from lobs_paper.report.methods import REFIT_LABEL
from lobs_paper.report.statistic import fixed

METHODS = ("exact_obs", "exact_obs_sequential", "exact_obs_staged")


def frontier_table(results: Results) -> DataFrame:
    """Give the test errors of one network at every density that was measured; without rows where none was."""
    curve = _curve(results)
    table = by_density(curve, at_every_density(curve))
    # Of the networks that each method was run on: not all methods were run on the same ones.
    dense = by_method(results.runs, ["original_error"]).set_index("label")["original_error"].map(fixed)
    table.insert(2, "dense", dense.reindex(table["method"].str.removesuffix(REFIT_LABEL)).to_list())
    return table


def frontier_records(results: Results) -> DataFrame:
    """Give the same for all networks in full precision."""
    rows = pd.concat([at_every_density(_curve(results.of(name))) for name in results.experiments])
    return rows[[*METHOD, "density_percent", "seeds"]].assign(**density_numbers(rows))


def at_every_density(curve: DataFrame) -> DataFrame:
    """Give a row per method and density, of all densities at which some method of one network was measured."""
    densities = [100 * density for density in steps_of(curve.loc[curve["density"] > 0, "density"])]
    return at_densities(curve, curve[METHOD].drop_duplicates(ignore_index=True), densities)


def _curve(results: Results) -> DataFrame:
    """The curves' points, and what every run itself was pruned to where its curve has no point of that density."""
    points = pd.concat([results.density_curve, _own_points(results.runs)], ignore_index=True)
    order = {label: place for place, label in enumerate(results.runs["label"].unique())}
    points = points[points["method"].isin(METHODS)].sort_values(
        "label", key=lambda label: label.map(order), kind="stable"
    )
    return with_refitted(points.reset_index(drop=True))


def _own_points(runs: DataFrame) -> DataFrame:
    """What was pruned at once and, as the curves, without a correction."""
    at_once = runs[(runs["rounds"] <= 1) & (runs["prune.correction"] == "none") & runs["prune.density"].notna()]
    names = {
        "prune.density": "density",
        "prune.error_after_pruning_percent": "test_error_percent",
        "prune.error_after_refit_percent": AFTER_REFIT[0],
    }
    return at_once[[*KEYS, *names]].rename(columns=names)
