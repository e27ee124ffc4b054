"""docs/notebooks.py makes pages of docs/tutorials/; `make docs` runs every one of them, here a small one is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "docs/tutorials").glob("*.py"))
_SPEC = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/notebooks.py")
notebooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebooks)


def test_every_tutorial_is_in_the_navigation():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"]
    (entries,) = (entry["Tutorials"] for entry in nav if "Tutorials" in entry)
    listed = {page for entry in entries for page in entry.values()}
    assert listed == {f"tutorials/{source.stem}.md" for source in SOURCES}


NOTEBOOK = """# %% [markdown]
# # A title
# On to [the next](deployed.py).

# %%
from matplotlib import pyplot as plt
from pathlib import Path

figure, axes = plt.subplots()
print(6 * 7, len(list(Path().iterdir())))
"""


@pytest.mark.slow
def test_a_page_shows_what_the_cells_say_and_draw():
    found = notebooks.pages("small", NOTEBOOK)
    page = found["small.md"]
    assert page.startswith("# A title\n")
    assert "[the next](deployed.py)" in page and "[small.ipynb](small.ipynb)" in page
    assert "    42 0\n" in page, "run in a folder of its own"
    (picture,) = (name for name in found if name.endswith(".png"))
    assert f"![What the lines above draw]({picture})" in page and found[picture].startswith(b"\x89PNG")
    assert json.loads(found["small.ipynb"])["cells"][1]["outputs"]


@pytest.mark.slow
def test_a_cell_that_raises_breaks_the_build():
    with pytest.raises(CellExecutionError, match=r"raise ValueError"):
        notebooks.pages("broken", '# %%\nraise ValueError("no")\n')
