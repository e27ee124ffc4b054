"""The tables of the interactive page: plain HTML, which a button in each heading sorts and a screen reader reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame, isna

from lobs_paper.report.frame import METHOD, Results
from lobs_paper.report.methods import style_of

_TONES = {"better": "better", "reproduced": "same", "not reproduced": "worse"}
_ERRORS = {
    "pruned": ("after pruning", "error_after_pruning"),
    "retrained": ("after retraining", "error_after_retraining"),
}


# Heading and format by field; texts have none.
Columns = dict[str, tuple[str, str | None]]


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: its class.
        caption: what it holds, for a screen reader.
        rows: a row each; ``color`` is drawn before the method, ``step`` says at which place of the slider it is shown,
            ``why`` follows a verdict.
        columns: heading and format by field; a format of None is that of texts.
    """

    name: str
    caption: str
    rows: DataFrame
    columns: Columns

    def shown(self) -> list[dict[str, Any]]:
        """The rows, where every number is a pair of what sorts it and what is shown; missing ones are dashes."""
        return [
            {**row, **{field: _number(row[field], look) for field, (_, look) in self.columns.items() if look}}
            for row in self.rows.to_dict("records")
        ]


def _number(value: Any, look: str) -> tuple[str, str]:
    return ("", "-") if isna(value) else (repr(float(value)), format(float(value), look))


def numbers(look: str, titles: Mapping[str, str]) -> Columns:
    """Columns of numbers, headings by field."""
    return {field: (title, look) for field, title in titles.items()}


def comparison(rows: DataFrame) -> Table | None:
    """Table 1: a row per method, the paper's figures beside ours, the differences and the verdict."""
    if rows.empty:
        return None
    names = {"density": "density", **{short: name for short, (_, name) in _ERRORS.items()}, "iterations": "iterations"}
    shown = {
        "label": rows["label"],
        "color": [style_of(method).color for method in rows["method"]],
        "verdict": rows["word"].where(rows["source"].notna(), ""),
        "tone": rows["word"].map(_TONES).fillna("none"),
        "why": rows["why"].where(rows["source"].notna(), rows["verdict"]),
    }
    for short, name in names.items():
        papers, ours = rows[f"paper_{name}"].astype(float), rows[name].map(lambda value: value.mean)
        shown |= {f"{short}_paper": papers, short: ours, f"{short}_off": ours - papers}
    ends = (("_paper", ", paper"), ("", ", ours"), ("_off", ", difference"))
    errors = {f"{short}{end}": f"{text}{what}" for short, (text, _) in _ERRORS.items() for end, what in ends}
    refit = rows["error_after_refit"].map(lambda value: value.mean)
    if refit.notna().any():
        shown["refitted"], errors["refitted"] = refit, "after refit, ours"
    columns: Columns = {
        "label": ("method", None),
        "verdict": ("verdict, and why", None),
        **numbers(".1f", {"density_paper": "density %, paper", "density": "density %, ours"}),
        **numbers(".2f", errors),
        **numbers(",.0f", {"iterations_paper": "iterations, paper", "iterations": "iterations, ours"}),
    }
    return Table("comparison", "Every method: the paper's figures beside ours", DataFrame(shown), columns)


def layers(results: Results) -> Table | None:
    """Every layer of every method, means over the seeds."""
    if results.layers.empty:
        return None
    names = ["density", "kept", "error", "relative_error", "bound_contribution"]
    rows = results.layers.groupby([*METHOD, "layer", "shape"], sort=False)[names].mean().reset_index()
    rows["color"] = [style_of(method).color for method in rows["method"]]
    rows["density"] *= 100
    columns: Columns = {
        "label": ("method", None),
        "layer": ("layer", None),
        "shape": ("shape", None),
        **numbers(".2f", {"density": "density %"}),
        **numbers(",.0f", {"kept": "weights kept"}),
        **numbers(".4g", {"error": "E", "relative_error": "relative E", "bound_contribution": "bound term"}),
    }
    rows = rows[["label", "color", "layer", "shape", *names]]
    return Table("layers", "Every layer of every method, right after the first pruning", rows, columns)
