"""docs/hooks.py: what the site adds to docs/. `make docs` builds the whole of it, with warnings as errors."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lobs

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
hooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hooks)


def cells(table: str) -> list[list[str]]:
    """The body of a table in Markdown."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_errors_and_seconds_are_those_of_the_report():
    table = pd.read_csv(ROOT / "reports/methods.csv")
    sections = re.split(r"^### .*$", hooks.networks_table(), flags=re.MULTILINE)[1:]
    assert len(sections) == table["experiment"].nunique()
    keys = ("error_before", "error_after_pruning", "error_after_refit", "error_after_retraining")
    for section, (_, rows) in zip(sections, table.groupby("experiment", sort=False), strict=True):
        for shown, (_, row) in zip(cells(section), rows.iterrows(), strict=True):
            assert shown[0] == row["label"]
            assert float(shown[1]) == pytest.approx(row["density_percent"], rel=0.005)
            for text, key in zip(shown[2:6], keys, strict=True):
                mean, deviation = row[f"{key}_percent"], row[f"{key}_deviation"]
                spread = f" ± {deviation:.2f}" if row["seeds"] > 1 else ""
                assert text == ("-" if pd.isna(mean) else f"{mean:.2f}{spread}")
            assert [float(text) for text in shown[6:]] == pytest.approx(
                [row["prune_seconds"], row["retrain_seconds"]], abs=0.051, nan_ok=True
            )


def test_layer_errors_are_those_of_the_benchmark():
    table = pd.read_csv(ROOT / "reports/solvers.csv")
    shown = {line[0]: [float(cell) for cell in line[1:]] for line in cells(hooks.solvers_table())}
    for solver, rows in table.groupby("solver"):
        expected = [*(100 * rows["relative_error"]), rows["path_seconds"].iloc[0]]
        assert shown.pop(solver) == pytest.approx(expected, rel=0.006, abs=0.0051)
    assert not shown


def test_durations_are_those_that_were_measured():
    table = pd.read_csv(ROOT / "reports/wall_clock.csv")
    shown = cells(hooks.durations_table())
    assert [line[0] for line in shown] == [f"`{command}`" for command in table["command"]]
    assert [float(line[2]) for line in shown] == pytest.approx(table["minutes"].tolist(), abs=0.5)


def test_methods_and_allocations_are_the_librarys():
    assert [line[0].strip("`") for line in cells(hooks.methods_table())] == list(lobs.methods())
    assert all(len(line) == 3 for line in cells(hooks.methods_table())), "a line of a table that is torn apart"
    assert cells(hooks.allocations_table())


def test_every_mark_has_a_table_and_every_public_name_a_place_in_the_api():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == hooks.TABLES.keys()
    api = hooks.api()
    names = {name.removeprefix("lobs.") for room in api.values() for name in room}
    rooms = {f"{room}.{name}" for room in ("layers", "solvers") for name in getattr(lobs, room).__all__}
    assert names >= {*lobs.__all__} - {"layers", "solvers", "__version__"}
    assert {name.split(".")[-1] for name in names} >= {name.split(".")[-1] for name in rooms}
    assert all(inspect.getdoc(getattr(lobs, name)) for name in lobs.__all__ if name != "__version__")
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"]
    (pages,) = (entry["API"] for entry in nav if "API" in entry)
    assert [(title, page) for entry in pages for title, page in entry.items()] == [
        (hooks.TITLES[room], f"api/{room}.md") for room in api
    ]


URIS = {"index.md", "methods.md", "contributing.md", "reports/README.md", "reports/overview.png", "api/pruning.md"}
URIS |= {"tutorials/deployed.md"}
PLACES = [
    ("methods.md", "[a](../README.md)", "[a](index.md)"),
    ("methods.md", "[a](../reports/README.md#what)", "[a](reports/README.md#what)"),
    ("reports/README.md", "![a](overview.png)", "![a](overview.png)"),
    ("reports/README.md", "[a](../docs/methods.md)", "[a](../methods.md)"),
    ("contributing.md", "[a](docs/methods.md)", "[a](methods.md)"),
    ("index.md", "[a](tutorials/deployed.py)", "[a](tutorials/deployed.md)"),
    ("tutorials/pictures.md", "[a](deployed.py), [b](../methods.md)", "[a](deployed.md), [b](../methods.md)"),
    ("methods.md", "[the solver](../src/lobs/solvers/lobs.py)", "the solver (`src/lobs/solvers/lobs.py`)"),
    ("methods.md", "[solvers/lobs.py](../src/lobs/solvers/lobs.py)", "`solvers/lobs.py`"),
    ("contributing.md", "[conf/](conf/)", "`conf`"),
    ("methods.md", "`self[1](features)`\n```python\nself[1](features)\n```\n", None),
    ("methods.md", "[`a`](../README.md), `b`", "[`a`](index.md), `b`"),
    ("methods.md", "[a](https://example.org/x.md), [b](#c)", "[a](https://example.org/x.md), [b](#c)"),
]


@pytest.mark.parametrize(("page", "link", "expected"), PLACES)
def test_links_lead_to_pages_where_there_are_some(page, link, expected):
    assert hooks.LINK.sub(lambda found: hooks.site_link(found, page, URIS, None), link) == (expected or link)


def test_links_that_leave_the_site_lead_into_the_repository_where_it_has_an_address():
    found = hooks.LINK.fullmatch("[the solver](../src/lobs/solvers/lobs.py)")
    link = hooks.site_link(found, "methods.md", URIS, "https://example.org/lobs")
    assert link == "[the solver](https://example.org/lobs/blob/main/src/lobs/solvers/lobs.py)"


@pytest.mark.parametrize(
    ("tag", "refused"),
    [
        ('<script src="https://example.org/x.js">', True),
        ('<link rel="stylesheet" href="//example.org/x.css">', True),
        ('<img alt="a" src="https://example.org/x.png">', True),
        ('<link rel="canonical" href="https://example.org/">', False),
        ('<script src="assets/x.js">', False),
        ('<a href="https://example.org/">', False),
    ],
)
def test_what_would_be_loaded_from_elsewhere_is_noticed(tag, refused):
    assert bool(hooks.FETCHED.search(tag)) == refused
