"""The tutorials: docs/tutorials/*.py, notebooks in jupytext's percent format, are run and become pages of the site.

MkDocs calls `on_files` while it builds the site. A cell that raises breaks the build.
"""

from __future__ import annotations

import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tutorials"
_PICTURE = re.compile(r"!\[png\]\((?P<name>[^)]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds every tutorial as a page, its pictures, and the notebook as it was run."""
    from mkdocs.structure.files import File

    for source in sorted(FOLDER.glob("*.py")):
        for name, content in pages(source.stem, source.read_text(encoding="utf-8")).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


@lru_cache
def pages(name: str, source: str) -> dict[str, str | bytes]:
    """Run a tutorial, in a folder of its own.

    Args:
        name: of its page.
        source: jupytext's.

    Returns:
        The page, the pictures that it shows and the notebook, by file name.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    notebook = jupytext.reads(source, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    text, found = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name})
    text = _PICTURE.sub(r"![What the lines above draw](\g<name>)", text)
    note = f"\n*Run when this site was built. To run it yourself: [{name}.ipynb]({name}.ipynb).*\n"
    title, rest = text.split("\n", 1)
    return {f"{name}.md": f"{title}\n{note}{rest}", f"{name}.ipynb": nbformat.writes(notebook), **found["outputs"]}
