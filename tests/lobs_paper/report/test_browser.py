"""The interactive page in a real browser: it must draw, answer and stay silent, without any network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import write_every
from lobs_paper.report.frame import load_results
from lobs_paper.report.interactive import index_page
from lobs_paper.report.rules import explained
from lobs_paper.report.table1 import compare

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. A developer may do without it, the CI machine (which sets CI) may not."""
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        message = f"none of {', '.join(_BROWSERS)} is installed: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two networks with every method."""
    folder = tmp_path_factory.mktemp("page")
    runs = write_every(folder / "runs")
    write_every(runs, "lenet5")
    results = load_results(runs)
    rows = explained(results, compare(results))
    path = folder / "index.html"
    path.write_text(index_page(results, rows, ["Two networks."], {"README.md": "Summary"}))
    return path


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page in a window; at the end no error and no request may have been seen."""
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    troubles: list[str] = []
    opened.on(
        "console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda request: troubles.append(request.url) if request.url != file.as_uri() else None)
    opened.goto(file.as_uri())
    opened.wait_for_selector(".readout .slick-row", timeout=60_000)
    yield opened
    opened.close()
    assert troubles == []


def texts(page: Any, table: str) -> list[list[str]]:
    """A table's rows on the screen, cell by cell; those of the other networks' tabs are empty."""
    rows = [row.split("\n") for row in page.locator(f".{table} .slick-row").all_inner_texts()]
    return [row for row in rows if len(row) > 1]


def test_the_page_is_drawn(page: Any, tmp_path: Path) -> None:
    pixels = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.body.scrollHeight") > 2000
    from PIL import Image

    with Image.open(tmp_path / "page.png") as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(pixels) > 50_000
    shown = {color for count, color in colors if count > 40}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= shown, "L-OBS, exact OBS and magnitude"


def test_the_page_fits_a_phones_width(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector(".readout .slick-row", timeout=60_000)
    for tab in ("LeNet-300-100, MNIST", "LeNet-5, MNIST"):
        page.get_by_text(tab, exact=True).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
    legends = page.locator(".bk-Legend:visible").all()
    assert legends and all(box["x"] + box["width"] <= 390 for box in (entry.bounding_box() for entry in legends))


def test_a_click_on_a_legends_entry_hides_the_method(page: Any) -> None:
    curves = page.locator(".bk-Figure").nth(2)
    curves.scroll_into_view_if_needed()
    before = curves.screenshot()
    curves.locator(".bk-Legend .bk-item").first.click()
    page.wait_for_timeout(500)
    assert curves.screenshot() != before


def test_moving_the_slider_changes_the_readout_and_back(page: Any) -> None:
    handle = page.locator(".noUi-handle").first
    before = texts(page, "readout")
    assert page.get_by_text("7%", exact=True).count() > 0
    handle.press("ArrowRight")
    page.get_by_text("5%", exact=True).first.wait_for()
    after = texts(page, "readout")
    assert len(after) == len(before) + 2, "Net-Trim was measured here"
    assert float(after[0][1]) > float(before[0][1]), "fewer weights, more errors"
    handle.press("ArrowLeft")
    page.get_by_text("7%", exact=True).first.wait_for()
    assert texts(page, "readout") == before


def test_a_click_on_a_heading_sorts_the_table(page: Any) -> None:
    before = [row[0] for row in texts(page, "comparison")]
    heading = page.locator(".comparison .slick-header-column", has_text="after pruning, ours").first
    heading.click()
    ascending = texts(page, "comparison")
    errors = [float(row[4]) for row in ascending]
    assert errors == sorted(errors) and [row[0] for row in ascending] != before
    heading.click()
    assert [float(row[4]) for row in texts(page, "comparison")] == errors[::-1]


def test_the_other_networks_tab_shows_its_own_layers(page: Any) -> None:
    assert "conv1" not in [row[1] for row in texts(page, "layers")]
    page.get_by_text("LeNet-5, MNIST", exact=True).click()
    page.locator(".layers .slick-row", has_text="conv1").first.wait_for()


def test_the_pointer_shows_exact_values(page: Any) -> None:
    plot = page.locator(".bk-Figure").nth(4)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tip = page.get_by_text("relative E:")
    for step in range(60):  # along the feet of the bars
        page.mouse.move(box["x"] + 100 + 6 * step, box["y"] + box["height"] - 32)
        if tip.count():
            break
    tip.first.wait_for()
    page.get_by_text("0.125000").first.wait_for()
