"""The interactive page: one HTML file that needs no network, with every network in a tab of its own.

standalone.py makes the file, dots.py, curves.py, layers.py and tables.py what stands in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bokeh.layouts import column
from bokeh.models import LayoutDOM, TabPanel, Tabs
from bokeh.models.widgets import Div

from lobs_paper.report import summary
from lobs_paper.report.comparison import compare
from lobs_paper.report.interactive.curves import curves
from lobs_paper.report.interactive.dots import dots
from lobs_paper.report.interactive.layers import layer_bars
from lobs_paper.report.interactive.standalone import render
from lobs_paper.report.interactive.tables import comparison_table, layers_table
from lobs_paper.report.results import Experiment

NAME = "index.html"
_NOTES = (
    "Errors are test errors. Density: share of the weights kept, the paper's CR. The paper's figures are recalled from "
    "its published tables unless README.md marks them as verified. A click on a heading sorts a table, one on a "
    "legend's entry hides a method, the pointer shows exact values."
)


def index_page(experiments: Sequence[Experiment], links: dict[str, str]) -> str:
    """Compose the page.

    Args:
        experiments: what was measured.
        links: title by file of the other pages in the same folder.

    Returns:
        The file's contents, the same for the same arguments.
    """
    panels = [TabPanel(title=summary.title(entry), child=_network(entry)) for entry in experiments]
    found = summary.counts(summary.lines(experiments))
    counts = "".join(
        f'<li class="{word.replace(" ", "-")}"><b>{number}</b>{escape(word)}</li>' for word, number in found.items()
    )
    texts = {
        "introduction": f"<p>{'<br>'.join(map(escape, _introduction(experiments)))}</p>",
        "counts": counts,
        "links": "<p>" + " · ".join(f'<a href="{file}">{escape(title)}</a>' for file, title in links.items()) + "</p>",
        "notes": escape(_NOTES),
    }
    return render(Tabs(tabs=panels, sizing_mode="stretch_width"), texts)


def _introduction(experiments: Sequence[Experiment]) -> list[str]:
    texts = summary.what_was_run(experiments)
    machine = summary.machine(experiments)
    return [*texts, f"Measured on: {machine}."] if machine else texts


def _network(experiment: Experiment) -> LayoutDOM:
    """What stands in a network's tab; parts without data are left out."""
    rows = compare(experiment)
    in_paper = any(row.paper for row in rows)
    parts = (
        ("The paper's errors and ours" if in_paper else "Errors", dots(experiment)),
        ("Table 1" if in_paper else "Methods", comparison_table(experiment) if rows else None),
        ("Pruned to every density at once, without retraining", curves(experiment)),
        ("Layers, right after the first pruning", layer_bars(experiment)),
        ("All layers", layers_table(experiment)),
    )
    shown = [model for title, part in parts if part is not None for model in (_heading(title), part)]
    return column(*shown, sizing_mode="stretch_width")


def _heading(text: str) -> Div:
    return Div(text=f'<h2 style="font-size:17px;margin:18px 0 0">{escape(text)}</h2>', sizing_mode="stretch_width")
