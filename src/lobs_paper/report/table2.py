"""Table 2, Net-Trim against L-OBS at one density: the paper's figures beside ours, and how many inputs each used."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from pandas import DataFrame

from lobs_paper.report import paper
from lobs_paper.report.frame import METHOD, Results, by_method
from lobs_paper.report.markdown import filled, means, printed
from lobs_paper.report.methods import style_of
from lobs_paper.report.statistic import DASH, fixed, significant, whole

# Methods whose densities differ by more than this are not compared.
SAME_DENSITY_POINTS = 0.1
_METHODS = ("net_trim", "net_trim_cascade", "lobs")
_NUMBERS = ["density", "error_after_pruning", "samples"]


def compare(results: Results) -> DataFrame:
    """Give Net-Trim's and L-OBS's rows, the paper's also where we have none; no rows where the network was not run."""
    results = results.of(paper.TABLE2_EXPERIMENT)
    runs = results.runs.merge(results.dense, on=["experiment", "seed"], how="left")
    kept = runs["prune.samples_kept"].where(runs["prune.samples_kept"] > 0, runs["collect.samples"])
    runs = runs.assign(
        density=100 * runs["prune.density"],
        error_after_pruning=runs["prune.error_after_pruning_percent"],
        # The input vectors used: all that were streamed, or those that were kept.
        samples=kept.where(kept > 0).where(runs["method"] != "lobs", runs["collect.images"]),
    )
    ours = by_method(runs, _NUMBERS)
    published = DataFrame([{"method": row.method, **_published(row)} for row in paper.TABLE2], dtype=object)
    if ours.empty:
        published = published.iloc[:0]
    rows = ours[ours["method"].isin(_METHODS)].merge(published, how="outer", on="method")
    rows["place"] = [_METHODS.index(method) for method in rows["method"]]
    rows = filled(rows.sort_values("place", kind="stable", ignore_index=True), _NUMBERS)
    labels = [style_of(method).label for method in rows["method"]]
    return rows.assign(
        experiment=paper.TABLE2_EXPERIMENT,
        label=rows["label"].where(rows["label"].notna(), pd.Series(labels, rows.index, dtype=object)),
        seeds=rows["seeds"].fillna(0).astype(int),
    )


def _published(row: paper.Table2Row) -> dict[str, Any]:
    return {"source": row.source, "paper_density": row.density, "paper_error": row.after_pruning}


def records(results: Results) -> DataFrame:
    """Give the table in full precision."""
    rows = compare(results)
    names = ("density", "error_after_pruning", "samples")
    numbers = means(rows, {name: name for name in names})
    ordered = {
        "density_paper_percent": rows["paper_density"],
        "density_percent": numbers["density"],
        "error_after_pruning_paper_percent": rows["paper_error"],
        "error_after_pruning_percent": numbers["error_after_pruning"],
        **{name: numbers[name] for name in ("density_deviation", "error_after_pruning_deviation")},
        **{name: numbers[name] for name in ("samples", "samples_deviation")},
    }
    return rows[[*METHOD, "source", "seeds"]].assign(**ordered)


def table(rows: DataFrame) -> DataFrame:
    """Give the rows of `compare` as a table."""
    return printed(
        rows.assign(source=rows["source"].fillna(DASH)),
        *(
            ("method", "label", str),
            ("density %, paper", "paper_density", significant),
            ("ours", "density", significant),
        ),
        *(("after pruning %, paper", "paper_error", fixed), ("ours", "error_after_pruning", fixed)),
        *(("input vectors per layer", "samples", whole), ("source of the paper's figures", "source", str)),
    )


def finding(rows: DataFrame) -> str:
    """Say how the errors compare; empty where Net-Trim or L-OBS was not run.

    Args:
        rows: of `compare`.

    Returns:
        A sentence for each of our Net-Trim rows: at one density the errors; at two, which method errs less with fewer
        weights, or that the two cannot be compared.
    """
    measured = [row for row in rows.itertuples() if row.density and row.error_after_pruning]
    texts = []
    for row, lobs in itertools.product(measured, [row for row in measured if row.method == "lobs"]):
        if row.method == "lobs":
            continue
        fewer, more = sorted((row, lobs), key=lambda entry: entry.density.mean)
        if more.density.mean - fewer.density.mean <= SAME_DENSITY_POINTS:
            texts.append(
                f"At {lobs.density.mean:.3g}% {row.label} leaves an error of {fixed(row.error_after_pruning)}%, "
                f"{lobs.label} one of {fixed(lobs.error_after_pruning)}%."
            )
        elif fewer.error_after_pruning.mean <= more.error_after_pruning.mean:
            texts.append(
                f"{fewer.label} leaves an error of {fixed(fewer.error_after_pruning)}% at {fewer.density.mean:.3g}%, "
                f"{more.label} one of {fixed(more.error_after_pruning)}% at {more.density.mean:.3g}%, "
                "with more weights."
            )
        else:
            texts.append(
                f"{row.label} and {lobs.label} are not at the same density ({row.density.mean:.3g}% and "
                f"{lobs.density.mean:.3g}%), so their errors are not compared."
            )
    return " ".join(texts)
