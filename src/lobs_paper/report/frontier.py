"""What is reached without labels and without training: exact OBS in its ways through a network, and after a refit."""

from __future__ import annotations

import pandas as pd
from pandas import DataFrame

from lobs_paper.report.curves import measured_points, steps_of
from lobs_paper.report.frame import METHOD, Results, by_method
from lobs_paper.report.method_tables import at_densities, by_density, density_numbers
from lobs_paper.report.methods import REFIT, REFIT_LABEL
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
    curve = measured_points(results)
    return curve[curve["method"].map(lambda name: name.removesuffix(REFIT)).isin(METHODS)]
