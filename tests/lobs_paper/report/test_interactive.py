from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pandas import DataFrame, Series

from helpers.runs import LAYERS, METHODS, write_every, write_json, write_runs
from lobs_paper.report.frame import Results, load_results
from lobs_paper.report.interactive import index_page, plots, tables
from lobs_paper.report.methods import STYLES
from lobs_paper.report.rules import explained
from lobs_paper.report.table1 import compare


def page_of(results: Results) -> str:
    return index_page(results, explained(results, compare(results)), ["Two <networks>."], {"README.md": "Summary"})


def load(folder: Path) -> Results:
    return load_results(write_every(folder / "runs"))


def test_the_same_metrics_give_the_same_bytes_of_one_small_file(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_runs(runs, "lenet5")
    results = load_results(runs)
    first, second = (page_of(results) for _ in range(2))
    assert first == second
    assert len(first.encode()) < 5e6
    outside = re.sub(r"<script[^>]*>.*?</script>", "", first, flags=re.DOTALL)
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', outside), "everything is inside the file"
    assert str(tmp_path) not in first


def test_the_header_says_what_was_run_and_counts_the_verdicts(tmp_path: Path) -> None:
    page = page_of(load_results(write_runs(tmp_path / "runs")))
    assert "Two &lt;networks&gt;." in page
    assert '<li class="reproduced"><b>1</b>reproduced</li>' in page, "L-OBS"
    assert '<li class="not-reproduced"><b>1</b>not reproduced</li>' in page, "magnitude"
    assert '<a href="README.md">Summary</a>' in page


def test_the_readout_holds_what_was_measured_at_each_density(tmp_path: Path) -> None:
    curves = plots.curves(load(tmp_path))
    assert [*curves.steps] == ["50%", "30%", "20%", "15%", "10%", "7%", "5%", "3.5%", "3%", "2%", "1.5%", "0.9%"]
    assert curves.start == "7%", "the paper's headline"
    assert curves.plot.select_one(plots.SLIDER).location == curves.steps["7%"]
    data = curves.readout.rows
    assert data["error"].is_monotonic_increasing
    at = data[data["step"] == "7%"].set_index("label")
    error = 1.7 + 88.3 * 0.93 ** (40 * 0.07 * 8.0)
    assert at.loc["L-OBS", "error"] == pytest.approx(1.05 * error), "the mean over three seeds"
    assert at.loc["L-OBS", "spread"] == f"{error:.2f} to {1.1 * error:.2f}"
    assert "Net-Trim" not in at.index, "not measured there"
    assert "Net-Trim" in set(data.loc[data["step"] == "5%", "label"])


def test_densities_that_are_as_good_as_equal_are_one_step_of_the_slider() -> None:
    assert plots.steps_of(Series([10, 5, 9.99, 10, 2])) == [10, 5, 2]


def test_every_method_of_every_layer_has_a_bar_in_its_own_colour(tmp_path: Path) -> None:
    results = load(tmp_path)
    methods = results.runs.drop_duplicates("label")
    for plot in plots.layers(results).children:
        assert len(plot.renderers) == len(methods)
        for bars, method in zip(plot.renderers, methods["method"], strict=True):
            assert list(bars.data_source.data["layer"]) == [name for name, _ in LAYERS]
            assert bars.glyph.fill_color == STYLES[method].color
        places = {bars.glyph.x.transform.value for bars in plot.renderers}
        assert len(places) == len(methods), "none hides another"
    shares = plots.layers(results).children[0].renderers[0].data_source.data["density"]
    assert list(shares) == pytest.approx([100 * results.layers["density"][0]] * 3)


def test_the_comparison_sets_the_papers_figures_beside_ours(tmp_path: Path) -> None:
    results = load(tmp_path)
    rows = explained(results, compare(results))
    data = tables.comparison(rows[rows["experiment"] == "lenet300"]).rows.set_index("label")
    lobs, further = data.loc["L-OBS"], data.loc["exact OBS"]
    assert (lobs["pruned_paper"], lobs["pruned"], lobs["pruned_off"]) == pytest.approx((3.1, 4.3, 1.2))
    assert (lobs["verdict"], lobs["iterations_paper"]) == ("not reproduced", 510)
    assert lobs["why"] != ""
    assert further["pruned_paper"] != further["pruned_paper"] and further["verdict"] == ""
    assert len(tables.layers(results).rows) == 15 * 3


def test_what_is_missing_in_a_table_is_a_dash_and_sorts_by_nothing() -> None:
    table = tables.Table("t", "", DataFrame({"a": [1234.5, float("nan")]}), tables.numbers(",.1f", {"a": "A"}))
    assert [row["a"] for row in table.shown()] == [("1234.5", "1,234.5"), ("", "-")]


def test_without_retraining_its_plot_is_empty(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("retrain/metrics.json"):
        path.unlink()
    rows = compare(load_results(runs))
    before, after = plots.dots(rows[rows["experiment"] == "lenet300"]).children
    assert [len(plot.renderers[0].data_source.data["error"]) for plot in (before, after)] == [2, 0]
    assert after.x_range.start < after.x_range.end


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("*.csv"):
        path.unlink()
    assert plots.curves(load_results(runs)) is None
    for method in METHODS:
        for path in (runs / "lenet300/seed0" / method).rglob("*.json"):
            path.unlink()
    train = runs / "lenet300/seed0/train/metrics.json"
    write_json(train, {**json.loads(train.read_text()), "data": "MNIST <small>"})
    results = load_results(runs)
    assert plots.layers(results) is tables.layers(results) is None
    rows = compare(results)
    assert plots.dots(rows[rows["experiment"] == "lenet300"]) is None
    assert "MNIST %3Csmall%3E</button>" in page_of(results)


def test_methods_keep_their_colours_and_have_markers_of_their_own() -> None:
    looks = {name: plots.marker_of(name) for name in STYLES}
    assert len({(look["marker"], look["fill_color"]) for look in looks.values()}) == len(STYLES)
    assert looks["lobs"]["fill_color"] == STYLES["lobs"].color
