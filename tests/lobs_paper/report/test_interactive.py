from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.runs import LAYERS, METHODS, write_every, write_json, write_runs
from lobs_paper.report.interactive import index_page
from lobs_paper.report.interactive.curves import curves, grid
from lobs_paper.report.interactive.dots import dots
from lobs_paper.report.interactive.layers import layer_bars
from lobs_paper.report.interactive.standalone import renumbered
from lobs_paper.report.interactive.style import marker_of
from lobs_paper.report.interactive.tables import comparison_table, layers_table
from lobs_paper.report.methods import STYLES
from lobs_paper.report.results import Experiment, load_results

LINKS = {"README.md": "Summary"}


def load(folder: Path, experiment: str = "lenet300") -> Experiment:
    return load_results(write_every(folder / "runs", experiment))[0]


def test_the_same_metrics_give_the_same_bytes_of_one_small_file(tmp_path: Path) -> None:
    runs = write_every(tmp_path / "runs")
    write_every(runs, "lenet5")
    experiments = load_results(runs)
    first, second = (index_page(experiments, LINKS) for _ in range(2))
    assert first == second
    assert len(first.encode()) < 5e6
    outside = re.sub(r"<script>.*?</script>", "", first, flags=re.DOTALL)
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', outside), "everything is inside the file"
    assert str(tmp_path) not in first


def test_identifiers_follow_the_order_in_the_document() -> None:
    content = {"roots": [{"id": "p1007", "args": ({"id": "p1003"}, {"id": "p1007"})}], "config": {"id": "p1003"}}
    assert renumbered(content) == {
        "roots": [{"id": "m1", "args": [{"id": "m2"}, {"id": "m1"}]}],
        "config": {"id": "m2"},
    }


def test_the_header_says_what_was_run_and_counts_the_verdicts(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    train = runs / "lenet300/seed0/train/metrics.json"
    write_json(train, {**json.loads(train.read_text()), "data": "MNIST <small>"})
    page = index_page(load_results(runs), LINKS)
    assert "LeNet-300-100, MNIST &lt;small&gt;: 2 methods, 1 seed each, dense error 1.70%." in page
    assert "Measured on: CPU, 2 threads." in page
    assert '<li class="reproduced"><b>1</b>reproduced</li>' in page, "L-OBS"
    assert '<li class="not-reproduced"><b>1</b>not reproduced</li>' in page, "magnitude"
    assert '<a href="README.md">Summary</a>' in page


def test_the_readout_holds_what_was_measured_at_each_density(tmp_path: Path) -> None:
    layout = curves(load(tmp_path))
    readouts, densities = (
        layout.select_one({"title": "density (weights kept)"}).js_property_callbacks["change:value"][0].args[name]
        for name in ("readouts", "densities")
    )
    assert densities == pytest.approx([0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.03, 0.02, 0.015, 0.009])
    for readout in readouts:
        assert readout["error"] == sorted(readout["error"])
        assert len({len(values) for values in readout.values()}) == 1
    at = readouts[5]
    row = at["method"].index("L-OBS")
    error = 1.7 + 88.3 * 0.93 ** (40 * 0.07 * 8.0)
    assert at["error"][row] == pytest.approx(1.05 * error), "the mean over three seeds"
    assert at["spread"][row] == f"{error:.2f} to {1.1 * error:.2f}"
    assert "Net-Trim" not in at["method"], "not measured there"
    assert "Net-Trim" in readouts[6]["method"]


def test_densities_that_are_as_good_as_equal_are_one_step_of_the_slider() -> None:
    assert grid([0.1, 0.05, 0.0999, 0.1, 0.02]) == [0.1, 0.05, 0.02]


def test_every_method_of_every_layer_has_a_bar_in_its_own_colour(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    densities, errors = layer_bars(experiment).children
    for plot in (densities, errors):
        assert len(plot.renderers) == len(experiment.methods)
        places = []
        for bars, runs in zip(plot.renderers, experiment.methods, strict=True):
            assert bars.data_source.data["layer"] == [name for name, _ in LAYERS]
            assert bars.glyph.fill_color == STYLES[runs.method].color
            places += bars.data_source.data["x"]
        assert len(set(places)) == len(places), "none hides another"
    shares = densities.renderers[0].data_source.data["density"]
    assert shares == pytest.approx([100 * run.layers[0].density for run in experiment.methods[0].runs] * 3)


def test_the_comparison_sets_the_papers_figures_beside_ours(tmp_path: Path) -> None:
    data = comparison_table(load(tmp_path)).source.data
    row = data["method"].index("L-OBS")
    assert (data["pruned_paper"][row], data["pruned"][row]) == (3.1, pytest.approx(4.3))
    assert data["pruned_off"][row] == pytest.approx(1.2)
    assert (data["verdict"][row], data["iterations_paper"][row]) == ("not reproduced", 510)
    assert data["why"][row] != ""
    further = data["method"].index("exact OBS")
    assert (data["pruned_paper"][further], data["verdict"][further]) == (None, "")
    layers = layers_table(load(tmp_path)).source.data
    assert len(layers["layer"]) == 14 * 3


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("*.csv"):
        path.unlink()
    (experiment,) = load_results(runs)
    assert curves(experiment) is None
    for method in METHODS:
        for path in (runs / "lenet300/seed0" / method).rglob("*.json"):
            path.unlink()
    (experiment,) = load_results(runs)
    assert dots(experiment) is layer_bars(experiment) is layers_table(experiment) is None
    assert "0 methods" in index_page([experiment], LINKS)


def test_methods_keep_their_colours_and_have_markers_of_their_own() -> None:
    assert len({(marker_of(name)["marker"], marker_of(name)["fill_color"]) for name in STYLES}) == len(STYLES)
    assert marker_of("lobs")["fill_color"] == STYLES["lobs"].color
