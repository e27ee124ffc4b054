"""Table 1: the paper's figures beside ours, with a verdict per row by the rules that RULES states to the reader."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import pandas as pd
from pandas import DataFrame

from lobs_paper.report import paper
from lobs_paper.report.frame import Results, by_method
from lobs_paper.report.markdown import Column, filled, means, printed
from lobs_paper.report.statistic import DASH, Statistic, fixed, significant, whole

Judgement = Literal["reproduced", "better", "not reproduced"]
Stage = Literal["after pruning", "after retraining"]
_WORST_FIRST: tuple[Judgement, ...] = ("not reproduced", "reproduced", "better")
# The words for a row, in the order in which they are counted.
VERDICTS = ("better", "reproduced", "not reproduced", "not judged", "not run")

# What still counts as the same. On 10,000 test images the difference of two independent errors has a standard
# deviation of 0.24 points near 3% and of 0.19 points near 1.8%.
AFTER_PRUNING_POINTS = 0.5
AFTER_RETRAINING_POINTS = 0.2
DENSITY_POINTS = 1.0

# Column of ours -> the paper's, in `PaperRow`.
_COMPARED = {
    "original_error": "original",
    "density": "density",
    "error_after_pruning": "after_pruning",
    "error_after_retraining": "after_retraining",
    "iterations": "iterations",
}
# Ours alone: the paper has none.
_ALONE = ("error_after_refit", "iterations_to_original")
_TITLES = ("original error %", "density %", "after pruning %", "after retraining %", "iterations")
_PRINTERS = (fixed, significant, fixed, fixed, whole)


class Judged(NamedTuple):
    """One error of a row, ours over the seeds beside the paper's, in percent, and what that makes it."""

    stage: Stage
    ours: Statistic
    papers: float
    judgement: Judgement

    @property
    def points(self) -> float:
        """Ours less the paper's."""
        return self.ours.mean - self.papers


def compare(results: Results) -> DataFrame:
    """Set our methods beside the paper's rows.

    Args:
        results: what was measured.

    Returns:
        By network the paper's rows in its order, one per method of ours that stands for it, then our further methods;
        networks that were not run at the end. `paper_*` are the paper's figures (NaN without any), the columns of the
        same names ours as a `Statistic`; `judged` are the errors that can be judged, `decisive` is the one that decides
        on the row (or None), `verdict` says so with the differences and `word` in one of VERDICTS.
    """
    ours = by_method(results.runs, [*_COMPARED, *_ALONE])
    ours["retrained"] = results.runs.groupby(["experiment", "label"], sort=False)["learned"].sum().to_numpy()
    ours["paper_method"] = ours["method"].map(paper.paper_method)
    published = DataFrame([_published(row) for row in paper.TABLE1], dtype=object)
    rows = published.reset_index(names="paper_place").merge(
        ours.reset_index(names="place"), how="outer", on=["experiment", "paper_method"]
    )
    there = {name: place for place, name in enumerate(results.experiments)}
    rows["network_place"] = [there.get(name, len(there) + paper.paper_order(name)) for name in rows["experiment"]]
    rows = rows.sort_values(["network_place", "paper_place", "place"], ignore_index=True)
    rows["method"] = rows["method"].fillna(rows["paper_method"])
    rows["label"] = rows["label"].fillna(rows["paper_label"])
    rows = rows.fillna({"seeds": 0, "retrained": 0}).astype({"seeds": int, "retrained": int})
    rows = filled(rows, [*_COMPARED, *_ALONE])
    return rows.assign(**DataFrame([_verdict(row) for row in rows.itertuples()], dtype=object))


def _published(row: paper.PaperRow) -> dict[str, Any]:
    figures = {f"paper_{ours}": getattr(row, papers) for ours, papers in _COMPARED.items()}
    place = {"experiment": row.experiment, "paper_method": row.method, "paper_label": row.label}
    return {**place, "source": row.source, "verified": bool(row.verified), **figures}


def judge(ours: float, papers: float, points: float) -> Judgement:
    """Judge an error: reproduced within `points` of the paper's, better below, not reproduced above."""
    if ours < papers - points:
        return "better"
    return "reproduced" if ours <= papers + points else "not reproduced"


def _verdict(row: Any) -> dict[str, Any]:
    pairs: tuple[tuple[Stage, Statistic, float, float], ...] = (
        ("after pruning", row.error_after_pruning, row.paper_error_after_pruning, AFTER_PRUNING_POINTS),
        ("after retraining", row.error_after_retraining, row.paper_error_after_retraining, AFTER_RETRAINING_POINTS),
    )
    comparable = bool(row.density) and abs(row.density.mean - row.paper_density) <= DENSITY_POINTS
    judged = [
        Judged(stage, ours, papers, judge(ours.mean, papers, points))
        for stage, ours, papers, points in pairs
        if comparable and ours and pd.notna(papers)
    ]
    decisive = min(judged, key=lambda part: _WORST_FIRST.index(part.judgement), default=None)
    verdict, word = DASH, "not judged"
    if row.source != row.source:
        verdict = "no such row in the paper"
    elif not row.seeds:
        verdict = word = "not run"
    elif row.density and not comparable:
        verdict = f"not judged: density {row.density.mean:.3g}% against {row.paper_density:g}%"
    elif decisive:
        word = decisive.judgement
        texts = [f"{part.stage} {part.judgement} ({part.points:+.2f} points)" for part in judged]
        if row.iterations:
            texts.append(f"with {row.iterations.mean / row.paper_iterations:.2g} times the paper's iterations")
        verdict = f"**{word}**: " + "; ".join(texts)
    return {"judged": judged, "decisive": decisive, "verdict": verdict, "word": word}


def table1(rows: DataFrame) -> DataFrame:
    """Give the rows of one network as a table, the paper's columns beside ours."""
    pairs = [
        column
        for name, title, show in zip(_COMPARED, _TITLES, _PRINTERS, strict=True)
        for column in ((f"{title}, paper", f"paper_{name}", show), ("ours", name, show))
    ]
    if rows["error_after_refit"].map(bool).any():
        behind = [name for _, name, _ in pairs].index("error_after_pruning") + 1
        pairs.insert(behind, ("after refit %, ours", "error_after_refit", fixed))
    reached = [until_original(row.iterations_to_original, row.retrained) for row in rows.itertuples()]
    rows = rows.assign(until=reached, source=rows["source"].fillna(DASH))
    last = (("until original error", "until"), ("source of the paper's figures", "source"), ("verdict", "verdict"))
    return printed(rows, ("method", "label", str), *pairs, *((title, name, str) for title, name in last))


def until_original(reached: Statistic, retrained: int) -> str:
    """Print after how many iterations the original error was reached again, and by how many seeds unless by all."""
    if not reached:
        return "not reached" if retrained else DASH
    return whole(reached) + (f" ({reached.count} of {retrained} seeds)" if reached.count < retrained else "")


def table1_records(rows: DataFrame) -> DataFrame:
    """Give Table 1 in full precision."""
    table = rows[["experiment", "method", "folder", "label", "paper_label", "source", "seeds"]]
    for name in _COMPARED:
        unit = "" if name == "iterations" else "_percent"
        table = table.assign(**{f"{name}_paper{unit}": rows[f"paper_{name}"]}, **means(rows, {name: name}, unit))
        if name == "error_after_pruning" and rows["error_after_refit"].map(bool).any():
            table = table.assign(**means(rows, {"error_after_refit": "error_after_refit"}, unit))
    reached = rows["iterations_to_original"]
    return table.assign(
        iterations_to_original=reached.map(lambda value: value.mean),
        seeds_at_original=reached.map(lambda value: value.count),
        verdict=[verdict.replace("**", "") for verdict in rows["verdict"]],
    )


def summary_table(rows: DataFrame) -> DataFrame:
    """Give the first page's table: the paper's rows in short; `rows` have a column `why` beside those of `compare`."""
    density = [significant(row.density or row.paper_density) for row in rows.itertuples()]
    rows = rows.assign(
        network=rows["experiment"].map(paper.network_of),
        shown=density,
        mark=["r, v" if verified else "r" for verified in rows["verified"]],
        verdict=[f"**{row.word}**" if row.decisive else row.word for row in rows.itertuples()],
        why=[text or DASH for text in rows["why"]],
    )
    errors: list[Column] = []
    for name, title in (("error_after_pruning", "after pruning"), ("error_after_retraining", "after retraining")):
        pairs = zip(rows[name], rows[f"paper_{name}"], strict=True)
        off = [f"{ours.mean - papers:+.2f}" if ours and pd.notna(papers) else DASH for ours, papers in pairs]
        rows = rows.assign(**{f"{name}_off": off})
        errors += [(f"{title}: paper", f"paper_{name}", fixed), ("ours", name, fixed), ("±", f"{name}_off", str)]
    first = (("network", "network"), ("method", "label"), ("density %", "shown"))
    last = (("source", "mark"), ("verdict", "verdict"), ("why", "why"))
    return printed(
        rows, *((title, name, str) for title, name in first), *errors, *((title, name, str) for title, name in last)
    )
