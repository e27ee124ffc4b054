"""One HTML file from Bokeh models: BokehJS inside it, no network access, the same bytes for the same models.

Bokeh numbers its models by a counter of the process and its roots by random identifiers. Here the models are numbered
anew in the order in which they stand in the document, and the root is named by us.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template
from typing import Any

from bokeh.document import Document
from bokeh.models import LayoutDOM
from bokeh.resources import Resources

# The parts of BokehJS that the page uses.
_COMPONENTS = ["bokeh", "bokeh-widgets", "bokeh-tables"]
_TEMPLATE = Path(__file__).with_name("page.html")
_ID = re.compile(r"p\d+")
_DOCUMENT = "report"
_ELEMENT = "networks"


def render(root: LayoutDOM, texts: dict[str, str]) -> str:
    """Compose the page.

    Args:
        root: what is shown below the header.
        texts: the template's other fields, as HTML.

    Returns:
        The file's contents.
    """
    document = Document()
    document.add_root(root)
    content = renumbered(document.to_json(deferred=False))
    identifier = content["roots"][0]["id"]
    items = [{"docid": _DOCUMENT, "roots": {identifier: _ELEMENT}, "root_ids": [identifier]}]
    library = "\n".join(Resources(mode="inline", components=_COMPONENTS, log_level="error").js_raw)
    fields = {"library": library, "documents": _script({_DOCUMENT: content}), "items": _script(items)}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(texts, element=_ELEMENT, **fields)


def renumbered(content: Any) -> Any:
    """Give a serialised document whose models are numbered in the order of their first appearance.

    Args:
        content: what `Document.to_json` gives.

    Returns:
        The same with new identifiers.
    """
    names: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, (list, tuple)):
            return [walk(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        return {
            key: names.setdefault(value, f"m{len(names) + 1}")
            if key == "id" and isinstance(value, str) and _ID.fullmatch(value)
            else walk(value)
            for key, value in node.items()
        }

    return walk(content)


def _script(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
