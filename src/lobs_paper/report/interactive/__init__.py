"""The interactive page: one HTML file that needs no network, with every network in a tab of its own.

plots.py and tables.py make what stands in a tab; page.html is the frame around all of them, with the tabs, tables and
controls that a keyboard and a screen reader can use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import json_item
from bokeh.models import CustomJS, Legend
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup
from pandas import DataFrame

from lobs_paper.report.frame import Results
from lobs_paper.report.interactive import plots, tables
from lobs_paper.report.table1 import VERDICTS

NAME = "index.html"
_TEMPLATE = Path(__file__).with_name("page.html")
# The part of BokehJS that the page uses.
_COMPONENTS = ["bokeh"]
# Legends have as many columns as the window has room for.
_FIT_LEGENDS = """
const narrow = innerWidth < 700;
for (const legend of legends) {
  legend.ncols = narrow ? Math.min(2, Math.ceil(legend.items.length / 2)) : 5;
  legend.label_text_font_size = narrow ? "9px" : "12px";
}
"""


@dataclass(frozen=True)
class Network:
    """What stands in a network's tab; parts without data are None.

    Attributes:
        title: of the tab.
        in_paper: whether the paper has rows of it.
        methods: colour by the label of each method that the plots below the table show.
        errors: plots of the rows of Table 1.
        comparison: Table 1.
        curves: errors at every density.
        layers: plots of the layers.
        layer_table: and their numbers.
    """

    title: str
    in_paper: bool
    methods: Mapping[str, str]
    errors: Any
    comparison: tables.Table | None
    curves: plots.Curves | None
    layers: Any
    layer_table: tables.Table | None

    def drawn(self) -> dict[str, Any]:
        """The Bokeh models by the part of the page that holds them."""
        curves = self.curves and self.curves.plot
        found = {"errors": self.errors, "curves": curves, "layers": self.layers}
        return {part: model for part, model in found.items() if model is not None}


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
    networks = [_network(results.of(name), rows) for name in results.experiments]
    words = rows.loc[rows["source"].notna(), "word"]
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        introduction=introduction,
        counts={word: number for word in VERDICTS if (number := int((words == word).sum()))},
        links=links,
        networks=networks,
        slider=plots.SLIDER,
        library=Markup(Resources(mode="inline", components=_COMPONENTS, log_level="error").render_js()),
        items=_script([{part: _item(model) for part, model in network.drawn().items()} for network in networks]),
    )


def _item(model: Any) -> Any:
    """A part of the page as BokehJS embeds it."""
    document = Document(theme=plots.THEME)
    document.add_root(model)
    legends = sorted(model.select({"type": Legend}), key=lambda legend: (len(legend.id), legend.id))
    document.js_on_event("document_ready", CustomJS(args={"legends": legends}, code=_FIT_LEGENDS))
    return json_item(model)


def _script(items: Any) -> Markup:
    """JSON for a script element, its models numbered anew: Bokeh counts all that the process has ever made."""
    text = json.dumps(items, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    numbers: dict[str, str] = {}
    text = re.sub(r'(?<=id":")p\d+(?=")', lambda match: numbers.setdefault(match[0], f"m{len(numbers)}"), text)
    return Markup(text)


def _network(results: Results, rows: DataFrame) -> Network:
    own = rows[rows["experiment"] == results.experiments[0]]
    curves, layer_table = plots.curves(results), tables.layers(results)
    shown = [table.rows for table in (layer_table, None if curves is None else curves.readout) if table is not None]
    return Network(
        title=results.title,
        in_paper=bool(own["source"].notna().any()),
        methods={label: color for part in shown for label, color in zip(part["label"], part["color"], strict=True)},
        errors=plots.dots(own),
        comparison=tables.comparison(own),
        curves=curves,
        layers=plots.layers(results),
        layer_table=layer_table,
    )
