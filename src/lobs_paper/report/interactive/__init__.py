"""The interactive page: one HTML file that needs no network, with every network in a tab of its own.

plots.py and tables.py make what stands in a tab, page.html is the frame around all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import CustomJS, Div, InlineStyleSheet, Legend, TabPanel, Tabs
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup
from pandas import DataFrame

from lobs_paper.report.frame import Results
from lobs_paper.report.interactive import plots, tables
from lobs_paper.report.table1 import VERDICTS

NAME = "index.html"
_TEMPLATE = Path(__file__).with_name("page.html")
_ELEMENT = "networks"
# The parts of BokehJS that the page uses.
_COMPONENTS = ["bokeh", "bokeh-widgets", "bokeh-tables"]
# Legends have as many columns as the window has room for.
_FIT_LEGENDS = """
const narrow = innerWidth < 700;
for (const legend of legends) {
  legend.ncols = narrow ? Math.min(2, Math.ceil(legend.items.length / 2)) : 5;
  legend.label_text_font_size = narrow ? "10px" : "12px";
}
"""


def index_page(results: Results, rows: DataFrame, introduction: Sequence[str], links: Mapping[str, str]) -> str:
    """Compose the page.

    Args:
        results: what was measured.
        rows: those of Table 1 (`table1.compare`), each with the words `why` it differs.
        introduction: a sentence per line.
        links: title by file of the other pages in the same folder.

    Returns:
        The file's contents, the same for the same arguments.
    """
    networks = [results.of(name) for name in results.experiments]
    tabs = Tabs(
        tabs=[TabPanel(title=own.title, child=_network(own, rows)) for own in networks],
        sizing_mode="stretch_width",
        stylesheets=[InlineStyleSheet(css=".bk-headers-wrapper { flex-wrap: wrap; }")],
    )
    document = Document(theme=plots.THEME)
    document.add_root(tabs)
    legends = sorted(tabs.select({"type": Legend}), key=lambda legend: (len(legend.id), legend.id))
    document.js_on_event("document_ready", CustomJS(args={"legends": legends}, code=_FIT_LEGENDS))
    words = rows.loc[rows["source"].notna(), "word"]
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        introduction=introduction,
        counts={word: number for word in VERDICTS if (number := int((words == word).sum()))},
        links=links,
        element=_ELEMENT,
        library=Markup(Resources(mode="inline", components=_COMPONENTS, log_level="error").render_js()),
        item=_script(json_item(tabs, _ELEMENT)),
    )


def _script(item: Any) -> Markup:
    """JSON for a script element, its models numbered anew: Bokeh counts all that the process has ever made."""
    text = json.dumps(item, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    numbers: dict[str, str] = {}
    text = re.sub(r'(?<=id":")p\d+(?=")', lambda match: numbers.setdefault(match[0], f"m{len(numbers)}"), text)
    return Markup(text)


def _network(results: Results, rows: DataFrame) -> Any:
    """What stands in a network's tab; parts without data are left out."""
    own = rows[rows["experiment"] == results.experiments[0]]
    in_paper = own["source"].notna().any()
    parts = (
        ("The paper's errors and ours" if in_paper else "Errors", plots.dots(own)),
        ("Table 1" if in_paper else "Methods", tables.comparison(own)),
        ("Pruned to every density at once, without retraining", plots.curves(results)),
        ("Layers, right after the first pruning", plots.layers(results)),
        ("All layers", tables.layers(results)),
    )
    shown = [model for text, part in parts if part is not None for model in (Div(text=f"<h2>{text}</h2>"), part)]
    return column(*shown, sizing_mode="stretch_width")
