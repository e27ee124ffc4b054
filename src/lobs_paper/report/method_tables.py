"""The tables of a row per method, over the seeds: errors, bound, retraining, costs, storage, curves.

A function gives a frame: of numbers in full precision for a CSV file where it is called `..._records`, of texts else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from lobs_paper.report.curves import at_density, measured_points
from lobs_paper.report.frame import METHOD, TOP5, Results, by_method
from lobs_paper.report.markdown import Column, filled, means, printed
from lobs_paper.report.statistic import DASH, Statistic, fixed, significant, statistic, whole
from lobs_paper.report.table1 import until_original

_RUN = ["experiment", "method", "folder", "seed"]
_LABEL = ("method", "label", str)
_ERRORS = ("density", "error_after_pruning", "error_after_retraining", "iterations")
_REFIT = "error_after_refit"
_ERROR_COLUMNS = (
    ("density %", "density", significant),
    ("after pruning %", "error_after_pruning", fixed),
    ("after retraining %", "error_after_retraining", fixed),
)
_OUTCOME_COLUMNS = (*_ERROR_COLUMNS, ("iterations", "iterations", whole))


def _outcome_columns(rows: DataFrame) -> list[Column]:
    """The columns of what came out, with that after a refit where some row has one."""
    refit = [("after refit %", _REFIT, fixed)] if rows[_REFIT].map(bool).any() else []
    return [*_OUTCOME_COLUMNS[:2], *refit, *_OUTCOME_COLUMNS[2:]]


def one_decimal(value: Statistic | float) -> str:
    """Print seconds and KiB."""
    return fixed(value, 1)


def methods_of(results: Results) -> DataFrame:
    """Give the methods, a row each."""
    return results.runs[METHOD].drop_duplicates(ignore_index=True)


def _yes_or_no(rows: DataFrame, holds: pd.Series) -> list[str]:
    """Whether something holds in all runs of every method; a dash where no run tells."""
    return [DASH if label not in holds else "yes" if holds[label] else "no" for label in rows["label"]]


_BOUND = {
    "evaluate.pruned.output_error": "output_error",
    "evaluate.pruned.bound": "bound",
    "bound_over_error": "bound_over_error",
}


def _bounds(results: Results) -> DataFrame:
    runs = results.runs
    error = runs["evaluate.pruned.output_error"]
    ratio = runs["evaluate.pruned.bound"] / error.where(error != 0)
    return runs.assign(bound_over_error=ratio).rename(columns=_BOUND)


def bound_records(results: Results) -> DataFrame:
    """Give the measured output error and Theorem 3.2's bound, a row per run."""
    runs = _bounds(results)
    return runs.loc[runs["evaluate.method"].notna(), [*_RUN, *_BOUND.values()]]


def bound_table(results: Results) -> DataFrame:
    """Give the measured output error and the bound."""
    runs = _bounds(results)
    known = runs.dropna(subset=["output_error", "bound"])
    holds = (known["bound"] >= known["output_error"]).groupby(known["label"]).all()
    rows = by_method(runs, list(_BOUND.values()))
    titles = ("measured output error", "bound", "bound / measured")
    numbers = [(title, name, significant) for title, name in zip(titles, _BOUND.values(), strict=True)]
    return printed(rows.assign(holds=_yes_or_no(rows, holds)), _LABEL, *numbers, ("bound holds", "holds", str))


def bound_summary(results: Results) -> dict[str, float]:
    """Give in how many runs the bound was measured and fails, and the ends of its ratio to the error."""
    runs = _bounds(results).dropna(subset=["bound_over_error"])
    broken = int((runs["bound"] < runs["output_error"]).sum())
    ratio = runs["bound_over_error"]
    return {"runs": len(runs), "broken": broken, "least": ratio.min(), "most": ratio.max()}


def retraining_table(results: Results) -> DataFrame:
    """Give the outcome of the retraining."""
    learned = results.runs[results.runs["learned"]]
    groups = learned.groupby("label", sort=False)
    names = [*_ERRORS, _REFIT, "iterations_to_original"]
    rows = filled(methods_of(results).merge(by_method(learned, names), how="left"), names)
    rounds = {label: ", ".join(map(str, sorted(set(group)))) for label, group in groups["rounds"]}
    counts = groups.size()
    rows = rows.assign(
        rounds=[rounds.get(label, DASH) for label in rows["label"]],
        reached=[until_original(row.iterations_to_original, counts.get(row.label, 0)) for row in rows.itertuples()],
        exact=_yes_or_no(rows, groups["retrain.masks_exact"].all()),
    )
    last = (("until original error", "reached", str), ("masks exact", "exact", str))
    return printed(rows, _LABEL, ("rounds", "rounds", str), *_outcome_columns(rows), *last)


def rounds_table(results: Results) -> DataFrame:
    """Give the rounds of the iterative methods, a row per method and round."""
    rounds = results.rounds.rename(columns=lambda name: name.removesuffix("_percent"))
    rounds = rounds[rounds.groupby("label")["round"].transform("nunique") > 1].assign(density=100 * rounds["density"])
    order = {label: place for place, label in enumerate(rounds["label"].unique())}
    rows = by_method(rounds, _ERRORS, [*METHOD, "round"])
    rows = rows.assign(place=rows["label"].map(order)).sort_values(["place", "round"])
    return printed(rows, _LABEL, ("round", "round", str), *_OUTCOME_COLUMNS)


def top5_table(results: Results) -> DataFrame:
    """Give the errors among the five largest outputs; without rows for few classes."""
    names = {f"evaluate.{network}.{TOP5}": network for network in ("dense", "pruned", "retrained")}
    runs = results.runs.rename(columns=names)
    runs = runs[runs[list(names.values())].notna().any(axis=1)]
    again = runs.groupby("label")["learned"].transform("any")
    plain = runs[_REFIT].isna()  # of the others the pruned network that was evaluated is the refitted one
    runs = runs.assign(
        density=100 * runs["prune.density"],
        retrained=runs["retrained"].where(again),
        refitted=runs["pruned"].mask(plain),
        pruned=runs["pruned"].where(plain),
    )
    titles = {"dense": "dense", "pruned": "after pruning", "refitted": "after refit", "retrained": "after retraining"}
    if plain.all():
        del titles["refitted"]
    errors = [(f"{title} %", name, fixed) for name, title in titles.items()]
    return printed(by_method(runs, ["density", *titles]), _LABEL, _ERROR_COLUMNS[0], *errors)


def spread_table(results: Results) -> DataFrame:
    """Give mean, deviation and range of the errors, of methods with several seeds."""
    stages = ("pruning", *(["refit"] if results.runs[_REFIT].notna().any() else []), "retraining")
    names = {stage: f"error_after_{stage}" for stage in stages}
    rows = by_method(results.runs, list(names.values()))
    seeds = {label: ", ".join(map(str, group)) for label, group in results.runs.groupby("label")["seed"]}
    rows = rows[rows["seeds"] > 1]
    rows = rows.assign(seeds=[seeds[label] for label in rows["label"]])
    columns = [
        (f"after {what} %{end}", name, show)
        for what, name in names.items()
        for end, show in (
            ("", fixed),
            (", least", lambda value: fixed(value.low)),
            (", largest", lambda value: fixed(value.high)),
        )
    ]
    return printed(rows, _LABEL, ("seeds", "seeds", str), *columns)


_CORRECTIONS = {
    "none": "as pruned",
    "bias": "biases corrected",
    "batch_norm": "batch norms estimated anew",
    "both": "both",
}


def corrections_table(results: Results) -> DataFrame:
    """Give the test errors with each correction from the calibration images, of methods that were corrected."""
    names = [f"prune.corrections.{name}" for name in _CORRECTIONS]
    runs = results.runs
    runs = runs[runs["prune.correction"].notna() & runs[names].notna().any(axis=1)]
    made = {
        label: ", ".join(sorted({_CORRECTIONS.get(name, name) for name in group}))
        for label, group in runs.groupby("label", sort=False)["prune.correction"]
    }
    rows = by_method(runs, names).assign(made=list(made.values()))
    measured = [name for name in names if runs[name].notna().any()]
    errors = [(_CORRECTIONS[name.rpartition(".")[2]], name, fixed) for name in measured]
    return printed(rows, _LABEL, *errors, ("made", "made", str))


# The columns of the table of densities, percent, of a network that has a point at one of them.
DENSITIES = (7.0, 5.0, 3.5, 3.0, 2.0, 1.5, 0.9)


def densities_of(results: Results) -> tuple[float, ...]:
    """Give the densities that the table of a network shows, percent.

    Returns:
        `DENSITIES` where a curve of the network has a point at one of them; else the densities that were measured, to
        two digits, from the largest to the smallest: a network that cannot do without half of its weights.
    """
    curve = results.density_curve
    if any(len(at_density(curve, percent / 100)) for percent in DENSITIES):
        return DENSITIES
    return tuple(sorted({float(f"{100 * density:.2g}") for density in curve["density"]}, reverse=True))


def curves_of(results: Results) -> tuple[DataFrame, DataFrame]:
    """Give the curves over densities, those after a refit among them, and the methods they may have, a row each."""
    curve = measured_points(results)
    return curve, pd.concat([methods_of(results), curve[METHOD]]).drop_duplicates(ignore_index=True)


def at_densities(curve: DataFrame, methods: DataFrame, densities: Sequence[float]) -> DataFrame:
    """Give the errors of one network at some densities, without retraining.

    Args:
        curve: its points.
        methods: a row each.
        densities: in percent.

    Returns:
        A row per method and density.
    """
    names = ["reached", "test_error_percent", "output_error"]
    curve, parts = curve.assign(reached=100 * curve["density"]), []
    for percent in densities:
        rows = by_method(at_density(curve, percent / 100), names)
        parts.append(methods.merge(rows, how="left").assign(density_percent=percent))
    if not parts:
        return DataFrame(columns=[*METHOD, *names, "seeds", "density_percent"])
    rows = filled(pd.concat(parts).sort_index(kind="stable"), names)
    return rows.assign(seeds=rows["seeds"].fillna(0).astype(int))


def density_records(results: Results) -> DataFrame:
    """Give `at_densities` of all networks in full precision."""
    networks = map(results.of, results.experiments)
    rows = pd.concat([at_densities(*curves_of(own), densities_of(own)) for own in networks])
    return rows[[*METHOD, "density_percent", "seeds"]].assign(**density_numbers(rows))


def density_numbers(rows: DataFrame) -> dict[str, pd.Series]:
    """Give the numbers of `at_densities` under the names that CSV files have for them."""
    return {
        "density_reached_percent": rows["reached"].map(lambda value: value.mean),
        **means(rows, {"test_error_percent": "test_error"}, "_percent"),
        **means(rows, {"output_error": "output_error"}),
    }


def density_table(results: Results) -> DataFrame:
    """Give the test errors of one network; without rows where no curve was measured."""
    curve, methods = curves_of(results)
    return by_density(curve, at_densities(curve, methods, densities_of(results)))


def by_density(curve: DataFrame, rows: DataFrame, show: Callable[[Any], str] = fixed) -> DataFrame:
    """Give a table with a column per density.

    Args:
        curve: of the network.
        rows: of `at_densities`.
        show: prints an error.

    Returns:
        The table, with the number of seeds that have a curve; a point that only some of them have says of how many.
    """
    seeds = curve.groupby("label")["seed"].nunique()
    table = rows[METHOD].drop_duplicates(ignore_index=True)
    counts = [int(seeds.get(label, 0)) for label in table["label"]]
    table, columns = table.assign(seeds=list(map(str, counts))), []
    for percent, group in rows.groupby("density_percent", sort=False):
        # A point that fewer seeds have says so.
        fewer = [
            f" ({value.count} of {count})" if 0 < value.count < count else ""
            for value, count in zip(group["test_error_percent"], counts, strict=True)
        ]
        table[percent] = [show(value) + note for value, note in zip(group["test_error_percent"], fewer, strict=True)]
        columns.append((f"{percent:.3g}%", percent, str))
    return printed(table, _LABEL, ("seeds", "seeds", str), *columns)


_COSTS = ("prune_seconds", "retrain_seconds", "seconds", "prune_peak_mib", "retrain_peak_mib")


def collect_costs(results: Results) -> tuple[Statistic, Statistic]:
    """Give seconds and peak memory of one network's calibration pass, which all methods share."""
    timings = results.timings[(results.timings["folder"] == "") & (results.timings["stage"] == "collect")]
    return statistic(timings["total"]), statistic(timings["peak_memory_mib"])


def _costs(results: Results) -> DataFrame:
    """Errors, seconds and peak memory."""
    place = ["experiment", "seed", "folder"]
    runs = results.runs
    for stage in ("prune", "retrain"):
        names = {"total": f"{stage}_seconds", "peak_memory_mib": f"{stage}_peak_mib"}
        timings = results.timings[results.timings["stage"] == stage].rename(columns=names)
        runs = runs.merge(timings[[*place, *names.values()]], how="left", on=place)
    # Of pruning alone where nothing was retrained; not known where a stage's are not.
    again = runs["retrain_seconds"].where(runs["final"] == "retrained", 0.0)
    return by_method(runs.assign(seconds=runs["prune_seconds"] + again), ["original_error", *_ERRORS, _REFIT, *_COSTS])


def method_records(results: Results) -> DataFrame:
    """Give errors, seconds and peak memory in full precision."""
    rows = _costs(results)
    shared = {name: collect_costs(results.of(name))[1] for name in results.experiments}
    rows["collect_peak_mib"] = [shared[name] for name in rows["experiment"]]
    shown = [name for _, name, _ in _outcome_columns(rows) if name != "iterations"]
    errors = {"original_error": "error_before", **{name: name for name in shown}}
    costs = {name: name for name in ("iterations", *_COSTS, "collect_peak_mib")}
    return rows[[*METHOD, "seeds"]].assign(**means(rows, errors, "_percent"), **means(rows, costs))


def method_table(results: Results) -> DataFrame:
    """Give the same for one network as a table."""
    titles = ("pruning s", "retraining s", "both s", "peak MiB, pruning", "peak MiB, retraining")
    printers = (one_decimal,) * 3 + (whole,) * 2
    first = (_LABEL, ("seeds", "seeds", str), ("error before %", "original_error", fixed))
    rows = _costs(results)
    return printed(rows, *first, *_outcome_columns(rows), *zip(titles, _COSTS, printers, strict=True))


_BYTES = ("dense_bytes", "sparse_bytes", "compact_bytes")
_COUNTS = ("parameters", "compact_parameters", "removed_units")
_TIMES = ("single_before_ms", "single_after_ms", "batch_before_ms", "batch_after_ms")


def _storage(results: Results) -> DataFrame:
    """What the final networks take on disk, and how fast they are on one image and on the larger batch."""
    place = ["experiment", "seed", "folder"]
    runs = results.runs
    again = runs["final"] == "retrained"
    for name in (*_BYTES, *_COUNTS, "not_compacted"):
        runs = runs.assign(
            **{name: runs[f"evaluate.retrained.storage.{name}"].where(again, runs[f"evaluate.pruned.storage.{name}"])}
        )
    latency = results.latency.rename(columns={"network": "final"}).sort_values("batch", kind="stable")
    groups = latency.groupby([*place, "final"], sort=False)[["batch", "before_ms", "after_ms"]]
    for name, rows in (("single", groups.first()), ("batch", groups.last())):
        times = rows.rename(columns={key: f"{name}_{key}" for key in rows.columns}).reset_index()
        runs = runs.merge(times, how="left", on=[*place, "final"])
    taken = runs["dense_bytes"].notna()
    runs = runs[taken.groupby([runs["experiment"], runs["label"]]).transform("any")].assign(taken=taken)
    rows = by_method(runs, [*_BYTES, *_COUNTS, *_TIMES])
    first = runs.groupby(METHOD, sort=False)[["batch_batch", "not_compacted"]].first().reset_index(drop=True)
    counts = runs.groupby(METHOD, sort=False)["taken"].sum().to_numpy()
    return rows.assign(seeds=counts, batch=first["batch_batch"].astype("Int64"), not_compacted=first["not_compacted"])


def storage_records(results: Results) -> DataFrame:
    """Give bytes and milliseconds in full precision."""
    rows = _storage(results)
    numbers = means(rows, {name: name for name in (*_BYTES, *_COUNTS, *_TIMES)})
    return rows[[*METHOD, "seeds"]].assign(**numbers, batch=rows["batch"], not_compacted=rows["not_compacted"])


def storage_table(results: Results) -> DataFrame:
    """Give the same for one network as a table; without rows where nothing was measured."""
    rows = _storage(results)
    batches = sorted(map(str, rows["batch"].dropna().unique()))
    ratio = [fixed(row.dense_bytes.mean / row.sparse_bytes.mean, 1) for row in rows.itertuples()]

    def kib(value: Statistic) -> str:
        return one_decimal(Statistic(value.mean / 1024, value.deviation / 1024, value.count))

    return printed(
        rows.assign(times=ratio),
        *(_LABEL, ("dense KiB", "dense_bytes", kib), ("sparse KiB", "sparse_bytes", kib)),
        *(("times smaller", "times", str), ("compacted KiB", "compact_bytes", kib)),
        *(("units removed", "removed_units", whole), ("parameters left", "compact_parameters", whole)),
        *(("1 image, ms", _TIMES[0], significant), ("compacted, ms", _TIMES[1], significant)),
        (f"batch of {', '.join(batches)}, ms" if batches else "batch, ms", _TIMES[2], significant),
        ("compacted, ms ", _TIMES[3], significant),
    )
