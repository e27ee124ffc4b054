"""The interactive page in a real browser: it must draw, answer and stay silent, without any network.

Its accessibility is checked by axe-core, its keys are pressed, and it is looked at as wide as a phone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

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
    opened.wait_for_selector("#layers0 .bk-Figure", timeout=60_000)
    yield opened
    opened.close()
    assert troubles == []


def texts(page: Any, table: str) -> list[list[str]]:
    """A table's rows on the screen, cell by cell; those of the other networks' tabs are hidden."""
    rows = page.locator(f".{table} tbody tr:visible").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_the_page_is_drawn(page: Any, tmp_path: Path) -> None:
    pixels = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.body.scrollHeight") > 2000
    from PIL import Image

    with Image.open(tmp_path / "page.png") as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(pixels) > 50_000
    shown = {color for count, color in colors if count > 40}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= shown, "L-OBS, exact OBS and magnitude"


@pytest.mark.parametrize("width", [1300, 375])
def test_axe_finds_nothing_that_keeps_anyone_out(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    found = Axe().run(page).response
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]] == []
    checked = {rule["id"] for rule in found["passes"]}
    assert checked >= {
        "color-contrast",
        "label",
        "aria-required-children",
        "scrollable-region-focusable",
        "th-has-data-cells",
    }


def test_the_page_fits_a_phones_width(page: Any) -> None:
    page.set_viewport_size({"width": 375, "height": 812})
    page.reload()
    for at in (0, 1):
        page.get_by_role("tab").nth(at).click()
        page.wait_for_selector(f"#layers{at} .bk-Figure", timeout=60_000)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), at
    legends = page.locator(".bk-Legend:visible").all()
    assert legends and all(box["x"] + box["width"] <= 375 for box in (entry.bounding_box() for entry in legends))


@pytest.mark.parametrize("width", [1300, 375])
def test_no_verdict_is_cut(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    cells = page.locator(".comparison td.verdict:visible")
    assert max(len(text) for text in cells.all_inner_texts()) > 60
    assert all(cells.evaluate_all("all => all.map(cell => cell.scrollWidth <= cell.clientWidth + 1)"))
    assert page.evaluate(
        """[...document.querySelectorAll('#panel0 td.verdict')].every(cell => {
            const box = cell.closest('.box').getBoundingClientRect();
            return cell.getBoundingClientRect().right <= box.right + 1;
        })"""
    ), "seen without scrolling sideways"


def test_the_keyboard_reaches_everything_in_the_order_of_reading(page: Any) -> None:
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        what = page.evaluate("(e => e.tagName + (e.getAttribute('role') ?? e.type ?? ''))(document.activeElement)")
        if not order or order[-1] != what:
            order.append(what)
    places = [order.index(what) for what in ("A", "BUTTONtab", "SECTIONtabpanel", "DIVregion", "BUTTONbutton")]
    assert places == sorted(places)
    assert order.index("INPUTcheckbox") < order.index("INPUTrange")


def test_arrows_change_the_network_and_its_own_layers_are_shown(page: Any) -> None:
    assert "conv1" not in [row[1] for row in texts(page, "layers")]
    first, second = page.get_by_role("tab").all()
    first.press("ArrowRight")
    assert second.get_attribute("aria-selected") == "true" and page.evaluate("document.activeElement.id") == "tab1"
    page.wait_for_selector("#layers1 .bk-Figure", timeout=60_000)
    assert "conv1" in [row[1] for row in texts(page, "layers")]
    second.press("Home")
    assert first.get_attribute("aria-selected") == "true"


def test_a_box_hides_its_method(page: Any) -> None:
    curves = page.locator("#curves0")
    curves.scroll_into_view_if_needed()
    before = curves.screenshot()
    box = page.get_by_role("checkbox", name="L-OBS", exact=True)
    box.press("Space")
    page.wait_for_timeout(500)
    assert curves.screenshot() != before
    box.press("Space")
    page.wait_for_timeout(500)
    assert curves.screenshot() == before


def test_moving_the_slider_changes_the_readout_and_back(page: Any) -> None:
    slider = page.get_by_role("slider", name="density (weights kept)").first
    before, drawn = texts(page, "readout"), page.locator("#curves0").screenshot()
    assert slider.get_attribute("aria-valuetext") == "7%"
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "5%"
    after = texts(page, "readout")
    assert len(after) == len(before) + 2, "Net-Trim was measured here"
    assert float(after[0][1]) > float(before[0][1]), "fewer weights, more errors"
    page.wait_for_timeout(300)
    assert page.locator("#curves0").screenshot() != drawn, "the line has moved"
    slider.press("ArrowLeft")
    assert texts(page, "readout") == before


def test_a_headings_button_sorts_the_table(page: Any) -> None:
    before = [row[0] for row in texts(page, "comparison")]
    heading = page.locator(".comparison thead button", has_text="after pruning, ours").first
    column = page.locator(".comparison thead th").all_inner_texts().index("after pruning, ours")
    heading.press("Enter")
    ascending = texts(page, "comparison")
    errors = [float(row[column]) for row in ascending]
    assert errors == sorted(errors) and [row[0] for row in ascending] != before
    assert page.locator(".comparison th[aria-sort=ascending]").count() == 1
    heading.click()
    assert [float(row[column]) for row in texts(page, "comparison")] == errors[::-1]


def test_the_pointer_shows_exact_values(page: Any) -> None:
    plot = page.locator("#layers0 .bk-Figure").nth(1)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tip = page.get_by_text("relative E:")
    for step in range(60):  # along the feet of the bars
        page.mouse.move(box["x"] + 100 + 6 * step, box["y"] + box["height"] - 32)
        if tip.count():
            break
    tip.first.wait_for()
    page.get_by_text("0.125000").first.wait_for()
