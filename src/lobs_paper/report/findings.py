"""What came out, as the numbers that the first page's sentences are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pandas import DataFrame

from lobs_paper.report import paper
from lobs_paper.report.curves import at_density, measured_points
from lobs_paper.report.frame import Results, by_method
from lobs_paper.report.method_tables import densities_of
from lobs_paper.report.statistic import Statistic, fixed, statistic
from lobs_paper.report.table1 import DENSITY_POINTS, VERDICTS


def counts(rows: DataFrame) -> dict[str, int]:
    """Give how many of the paper's rows have each verdict; those that none has are left out."""
    words = rows.loc[rows["source"].notna(), "word"]
    return {word: number for word in VERDICTS if (number := int((words == word).sum()))}


def counted(number: int, thing: str) -> str:
    """Give "1 thread" or "2 threads"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def what_was_run(results: Results) -> list[str]:
    """Give a sentence per network: its data, its dense error, how many methods and seeds."""
    texts = []
    for own in map(results.of, results.experiments):
        error = statistic(own.dense["train.test_error_percent"])
        seeds = set(own.runs.groupby("label").size()) or {len(own.dense)}
        count = " to ".join(map(str, sorted({min(seeds), max(seeds)}))) + f" seed{'s' * (max(seeds) > 1)}"
        dense = f", dense error {fixed(error)}%" if error else ""
        texts.append(f"{own.title}: {counted(own.runs['label'].nunique(), 'method')}, {count} each{dense}.")
    return texts


def machine(results: Results) -> str:
    """Say in general words where the runs were made, "CPU, 2 threads"; empty where no timing tells."""
    known = results.timings[["device", "threads"]].dropna().drop_duplicates()
    texts = (f"{row.device.upper()}, {counted(int(row.threads), 'thread')}" for row in known.itertuples())
    return " and ".join(sorted(texts))


def headlines(results: Results, rows: DataFrame) -> Iterator[dict[str, Any]]:
    """Give per network of the paper L-OBS's row and the method that leaves least beside it, per other one its ends."""
    for name in results.experiments:
        own, group = results.of(name), rows[rows["experiment"] == name]
        if group["source"].notna().any():
            lobs = group[(group["folder"] == "lobs") & group["source"].notna()]
            for row in lobs.itertuples():
                if row.density and row.error_after_pruning:
                    yield {"title": own.title, "lobs": row, "best": _least(own, group, row)}
        elif ends := list(_ends(own)):
            yield {"title": own.title, "dense": statistic(own.dense["train.test_error_percent"]), "ends": ends}


def _least(results: Results, rows: DataFrame, lobs: Any) -> Any:
    """The method cut only once that leaves least at L-OBS's density, where that is less than L-OBS leaves."""
    once = results.runs.groupby("label")["rounds"].max() <= 1
    found = [
        row
        for row in rows.itertuples()
        if row.seeds and once[row.label] and abs(row.density.mean - lobs.density.mean) <= DENSITY_POINTS / 10
    ]
    best = min(found, key=lambda row: row.error_after_pruning.mean, default=None)
    return best if best and best.error_after_pruning.mean < lobs.error_after_pruning.mean else None


def _ends(results: Results) -> Iterator[tuple[float, list[tuple[str, Statistic]]]]:
    """What is best and worst without retraining, at the largest and the smallest density."""
    densities = densities_of(results)
    for percent in dict.fromkeys((*densities[:1], *densities[-1:])):
        errors = by_method(at_density(measured_points(results), percent / 100), ["test_error_percent"])
        ranked = sorted(
            zip(errors["label"], errors["test_error_percent"], strict=True), key=lambda pair: (pair[1].mean, pair[0])
        )
        if ranked:
            yield percent, [*ranked[:1], *ranked[1:][-1:]]


def refits(results: Results) -> Iterator[dict[str, Any]]:
    """Give the errors before and after a refit of every method that has one, by network."""
    for own in map(results.of, results.experiments):
        found = own.runs[own.runs["error_after_refit"].notna()]
        names = ["density", "error_after_pruning", "error_after_refit"]
        yield from ({"title": own.title, **row._asdict()} for row in by_method(found, names).itertuples(index=False))


def short_of(rows: DataFrame) -> list[str]:
    """Give what was not reproduced."""
    return [
        f"{row.label} on {paper.network_of(row.experiment)} ({row.decisive.stage} {row.decisive.points:+.2f} points)"
        for row in rows.itertuples()
        if row.word == "not reproduced"
    ]
