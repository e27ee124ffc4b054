"""The tables of the page, sortable by a click on a heading: Table 1 beside the paper's figures, and all layers."""

from __future__ import annotations

from typing import Any

from bokeh.models.widgets.tables import DataTable

from lobs_paper.report import summary
from lobs_paper.report.comparison import Comparison, compare
from lobs_paper.report.interactive import style
from lobs_paper.report.methods import style_of
from lobs_paper.report.reasons import facts_of
from lobs_paper.report.results import Experiment
from lobs_paper.report.statistic import Statistic, over_seeds
from lobs_paper.report.tables import layer_records
from lobs_paper.report.why import why

_VERDICT_CELL = '<b style="color:<%= tone %>"><%= value %></b>'
_LAYER_NUMBERS = ("density", "kept", "error", "relative_error", "bound_contribution")


def comparison_table(experiment: Experiment) -> DataTable:
    """Table 1: a row per method, the paper's figures beside ours, the differences and the verdict."""
    reasons = {facts.row.folder: why(facts) for facts in facts_of(experiment)}
    rows = [_compared(row, reasons.get(row.folder, "")) for row in compare(experiment)]
    errors = {
        f"{name}{end}": f"{title}{what}"
        for name, title in (("pruned", "after pruning"), ("retrained", "after retraining"))
        for end, what in (("_paper", ", paper"), ("", ", ours"), ("_off", ", difference"))
    }
    columns = [
        style.method_column(),
        *style.number_columns({"density_paper": "density %, paper", "density": "density %, ours"}, "0.0", 62),
        *style.number_columns(errors, "0.00", 68),
        *style.number_columns({"iterations_paper": "iterations, paper", "iterations": "iterations, ours"}, "0,0", 66),
        style.text_column("verdict", "verdict", 106, _VERDICT_CELL),
        style.text_column("why", "why", 210, '<span title="<%= value %>"><%= value %></span>'),
    ]
    # Columns as wide as they are asked to be: fitted ones would all be alike.
    sizes = {"sizing_mode": "stretch_width", "autosize_mode": "none"}
    return style.table(style.column_source(rows), columns, len(rows), "comparison", **sizes)


def _compared(row: Comparison, reason: str) -> dict[str, Any]:
    paper = row.paper
    word = row.decisive.judgement if row.decisive else ("" if paper is None else row.verdict.partition(":")[0])

    def mean(value: Statistic | None) -> float | None:
        return value.mean if value else None

    def pair(name: str, papers: float | None, ours: Statistic | None) -> dict[str, float | None]:
        off = None if papers is None or ours is None else ours.mean - papers
        return {f"{name}_paper": papers, name: mean(ours), f"{name}_off": off}

    return {
        "method": summary.label(row),
        "color": style_of(row.method).color,
        **pair("density", paper.density if paper else None, row.density),
        **pair("pruned", paper.after_pruning if paper else None, row.after_pruning),
        **pair("retrained", paper.after_retraining if paper else None, row.after_retraining),
        **pair("iterations", paper.iterations if paper else None, row.iterations),
        "verdict": word,
        "tone": style.TONES.get(word, "#6B7480"),
        "why": reason if paper else row.verdict,
    }


def layers_table(experiment: Experiment) -> DataTable | None:
    """Every layer of every method, means over the seeds; None where no layer is known."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in layer_records([experiment]):
        groups.setdefault((record["method"], record["folder"], record["layer"]), []).append(record)
    rows = []
    for (method, folder, layer), records in groups.items():
        statistics = {key: over_seeds(record[key] for record in records) for key in _LAYER_NUMBERS}
        means = {key: value.mean if value else None for key, value in statistics.items()}
        share = means.pop("density")
        name = {"method": style_of(method, folder).label, "color": style_of(method).color, "layer": layer}
        percent = None if share is None else 100 * share
        rows.append({**name, "shape": records[0]["shape"], "density": percent, **means})
    if not rows:
        return None
    columns = [
        style.method_column(),
        style.text_column("layer", "layer", 130),
        style.text_column("shape", "shape", 110),
        *style.number_columns({"density": "density %"}, "0.00"),
        *style.number_columns({"kept": "weights kept"}, "0,0"),
        *style.small_number_columns({"error": "E", "relative_error": "relative E", "bound_contribution": "bound term"}),
    ]
    return style.table(style.column_source(rows), columns, len(rows), "layers", sizing_mode="stretch_width")
