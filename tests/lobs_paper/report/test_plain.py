"""Names from outside never become markup of a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.runs import METHODS, write_runs
from lobs_paper.report import write_report
from lobs_paper.report.frame import load_results
from lobs_paper.report.plain import checked_name, escaped, plain

IMAGE, LINK = "<img src=x onerror=ran()>", "[a](http://a) `b` **c** |"


def foreign(folder: Path) -> Path:
    """Runs whose layers and data have names of markup."""
    runs = write_runs(folder / "runs", "net", methods={"lobs": METHODS["lobs"]})
    for file in runs.rglob("*.*"):
        text = file.read_text().replace("fc1", IMAGE).replace("fc2", LINK)
        file.write_text(text.replace('"solver"', f'"data": "MNIST {IMAGE} {LINK}", "notes": ["{IMAGE}"], "solver"'))
    return runs


def test_a_report_over_anybodys_results_has_no_markup_of_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    write_report(foreign(tmp_path), folder)
    pages = {
        path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".html", ".csv", ".svg")
    }
    assert any("%3Cimg src=x onerror=ran()%3E" in text for text in pages.values()), "they are shown"
    for name, text in pages.items():
        assert not re.search(r"(<|u003c)img src=x", text), name
        if not name.endswith(".html"):  # whose library has such texts of its own
            assert not re.search(r"\[a\]\(|`b`|\*\*c\*\*", text), name


@pytest.mark.parametrize("name", ["javascript:alert(1)", "a b", "<b>", "-x", ".x", "a[b](c)"])
@pytest.mark.parametrize("what", ["experiment", "method", "folder"])
def test_names_that_become_addresses_are_refused_unless_lobs_could_have_given_them(tmp_path, name, what) -> None:
    runs = write_runs(tmp_path / "runs", "net", methods={"lobs": METHODS["lobs"]})
    if what == "experiment":
        (runs / "net").rename(runs / name)
    elif what == "folder":
        (runs / "net/seed0/lobs").rename(runs / "net/seed0" / name)
    else:
        for file in (runs / "net/seed0/lobs").rglob("metrics.json"):
            file.write_text(file.read_text().replace('"lobs"', f'"{name}"'))
    with pytest.raises(ValueError, match="is no name of letters, digits"):
        load_results(runs)


def test_texts_without_markup_stay_as_they_are() -> None:
    for text in ("_blocks.0._conv", "CIFAR-10 (JPEG)", '50% of it; it\'s "kept", a=1', "é/ü: 3"):
        assert plain(text) == text
    assert plain({"<a>": ["`", 1, None, {"x": "http://y"}]}) == {"%3Ca%3E": ["%60", 1, None, {"x": "http%3A//y"}]}
    assert checked_name("LeNet-300_100.v2", "here") == "LeNet-300_100.v2"


def test_markdown_shows_a_text_as_it_is() -> None:
    assert escaped("<b> [a](http://x) a_b|c\n`d`") == "&lt;b> \\[a\\](http&#58;//x) a\\_b\\|c \\`d\\`"
