from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.runs import EVERY, write_csv, write_every, write_json, write_runs
from lobs_paper.report.figures import draw_all, figure2, figure3, figure4, figure5
from lobs_paper.report.methods import STYLES, style_of
from lobs_paper.report.results import Experiment, load_results

ORIGINAL = "original error (1.70%)"


def load(tmp_path: Path, experiment: str = "lenet300", seeds: tuple[int, ...] = (0,)) -> Experiment:
    return load_results(write_runs(tmp_path / "runs", experiment, seeds))[0]


def test_every_figure_is_written_as_svg_png_and_csv(tmp_path: Path) -> None:
    drawings = draw_all(load(tmp_path))
    stems = ["density-lenet300", "figure2", "figure3", "figure4-lenet300", "figure5"]
    stems += ["bound-lenet300", "retraining-lenet300"]
    assert [drawing.stem for drawing in drawings] == stems
    for drawing in drawings:
        svg, png, table = drawing.write(tmp_path / "reports")
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(drawing.records) > 0
        assert tuple(rows[0]) == drawing.columns == tuple(drawing.records[0])


def test_the_same_metrics_give_the_same_bytes(tmp_path: Path) -> None:
    experiment = load(tmp_path, seeds=(0, 1))
    first, second = (
        [path.read_bytes() for drawing in draw_all(experiment) for path in drawing.write(tmp_path / folder)]
        for folder in ("first", "second")
    )
    assert first == second


def test_the_papers_own_experiment_has_the_plain_name(tmp_path: Path) -> None:
    names = [drawing.stem for drawing in draw_all(load(tmp_path, "lenet5"))]
    papers = ["density-lenet5", "figure2-lenet5", "figure3-lenet5", "figure4", "figure5-lenet5"]
    assert names == [*papers, "bound-lenet5", "retraining-lenet5"]


def test_figure2_draws_the_mean_over_seeds_with_its_band(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    for seed, accuracies in ((0, (98.0, 60.0)), (1, (98.0, 80.0))):
        path = runs / f"lenet300/seed{seed}/lobs/prune/first_layer_curve.csv"
        points = [(1.0, accuracies[0]), (0.25, accuracies[1]), (0.1 + 0.1 * seed, 50.0)]
        write_csv(path, ("density", "test_accuracy_percent"), points)
    drawing = figure2(load_results(runs)[0])
    assert drawing is not None
    axes = drawing.figure.axes[0]
    line = next(line for line in axes.lines if line.get_label() == "L-OBS")
    assert list(line.get_xdata()) == [0.0, 75.0], "only densities that all seeds have"
    assert list(line.get_ydata()) == [98.0, 70.0]
    band = axes.collections[1].get_paths()[0].vertices
    assert {float(y) for x, y in band if x == 75.0} == {60.0, 80.0}


def test_figure2_draws_the_first_seed_where_seeds_share_little_but_the_ends(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    curves = ([0.0, 0.1, 0.2, 0.5, 1.0], [0.0, 0.15, 0.3, 0.6, 1.0])
    for seed, densities in enumerate(curves):
        path = runs / f"lenet300/seed{seed}/lobs/prune/first_layer_curve.csv"
        write_csv(path, ("density", "test_accuracy_percent"), [(density, 90 * density + seed) for density in densities])
    drawing = figure2(load_results(runs)[0])
    assert drawing is not None
    line = next(line for line in drawing.figure.axes[0].lines if line.get_label() == "L-OBS")
    assert list(line.get_xdata()) == pytest.approx([100, 90, 80, 50, 0])
    assert list(line.get_ydata()) == pytest.approx([0, 9, 18, 45, 90])
    assert "L-OBS: the first seed alone, whose densities the others do not share." in drawing.caption


def test_a_method_keeps_its_colour_in_all_figures(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    for draw in (figure2, figure4, figure5):
        drawing = draw(experiment)
        assert drawing is not None
        for axes in drawing.figure.axes:
            colors = {line.get_label(): line.get_color() for line in axes.lines if "original" not in line.get_label()}
            assert colors == {STYLES[m].label: STYLES[m].color for m in ("lobs", "magnitude")}


def test_methods_that_share_a_curve_are_drawn_once_and_named(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    source, twin = runs / "lenet300/seed0/magnitude", runs / "lenet300/seed0/lwc"
    for path in (path for path in source.rglob("*") if path.is_file()):
        target = twin / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text().replace('"magnitude"', '"lwc"'))
    experiment = load_results(runs)[0]
    for draw in (figure2, figure5):
        drawing = draw(experiment)
        assert drawing is not None
        assert len(drawing.figure.axes[0].lines) == 2
        assert drawing.caption.endswith("LWC has the same curve as LWC (magnitude, one shot).")
    assert {record["method"] for record in figure2(experiment).records} == {"magnitude", "lwc", "lobs"}


def test_figure3_tells_the_share_of_small_sensitivities(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    histogram = {"layer": "fc1", "log10_edges": [-6, -3, 0], "counts": [95, 5], "share_below_0.001": 0.95}
    write_json(runs / "lenet300/seed0/lobs/prune/sensitivities.json", histogram)
    drawing = figure3(load_results(runs)[0])
    assert drawing is not None
    assert drawing.caption.partition("Ours: ")[2].startswith("L-OBS: 95.0% below 0.001.")
    assert [record["weights"] for record in drawing.records] == [95, 5]
    outline = drawing.figure.axes[0].patches[-1].get_data()
    assert outline.values == pytest.approx([95.0, 5.0])
    assert outline.edges == pytest.approx([1e-6, 1e-3, 1.0])


def test_figure4_shows_the_original_error(tmp_path: Path) -> None:
    drawing = figure4(load(tmp_path))
    assert drawing is not None
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert set(lines["original error (1.70%)"].get_ydata()) == {1.7}
    assert lines["L-OBS"].get_ydata()[0] == pytest.approx(3.3)
    assert lines["L-OBS"].get_xdata()[-1] == 510


def test_figure4_joins_the_rounds_of_an_iterative_method(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    points = [(1, 0, "", 2.0), (1, 10, 0.1, 1.8), (2, 10, "", 9.0), (2, 15, 0.2, ""), (2, 20, 0.1, 1.9)]
    path = runs / "lenet300/seed0/magnitude/retrain/curve.csv"
    write_csv(path, ("round", "iteration", "train_loss", "test_error_percent"), points)
    drawing = figure4(load_results(runs)[0])
    assert drawing is not None
    line = drawing.figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [0, 10, 10, 20]
    assert list(line.get_ydata()) == [2.0, 1.8, 9.0, 1.9]


def test_figure5_has_a_panel_per_layer_over_the_root_of_the_error(tmp_path: Path) -> None:
    drawing = figure5(load(tmp_path))
    assert drawing is not None
    assert [axes.get_title() for axes in drawing.figure.axes] == ["fc1", "fc2", "fc3"]
    line = drawing.figure.axes[1].lines[0]
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (pytest.approx(50.0**0.5), 100.0)
    assert min(line.get_xdata()) > 0, "an error of zero has no place on a logarithmic axis"


def test_figure5_says_what_a_convolutions_samples_are(tmp_path: Path) -> None:
    captions = [figure5(load(tmp_path / name, name)).caption for name in ("lenet5", "lenet300")]
    assert ["(of a convolution: positions in its output)" in caption for caption in captions] == [True, False]


def test_figure5_begins_a_new_row_after_four_layers(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    columns = ("layer", "density", "error", "relative_error", "sensitivity_threshold")
    points = [(f"fc{k}", density, 1 - density, 1 - density, "") for k in range(6) for density in (1.0, 0.5, 0.0)]
    write_csv(runs / "lenet300/seed0/lobs/prune/paths.csv", columns, points)
    (runs / "lenet300/seed0/magnitude/prune/paths.csv").unlink()
    drawing = figure5(load_results(runs)[0])
    assert drawing is not None
    axes = drawing.figure.axes
    assert [panel.get_title() for panel in axes] == [f"fc{k}" for k in range(6)]
    assert [bool(panel.get_ylabel()) for panel in axes] == [True, False, False, False, True, False]
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["L-OBS"]


def test_every_method_and_three_seeds_are_drawn_in_two_panels_of_retraining(tmp_path: Path) -> None:
    experiment = load_results(write_runs(tmp_path / "runs", seeds=(0, 1, 2), methods=EVERY))[0]
    drawing = figure4(experiment)
    assert drawing is not None
    layer_wise, others = (
        [line.get_label() for line in axes.lines if "original" not in line.get_label()] for axes in drawing.figure.axes
    )
    assert layer_wise == [style.label for style in STYLES.values() if style.layer_wise]
    assert others == [style.label for name, style in STYLES.items() if not style.layer_wise or name == "lobs"]
    for axes in drawing.figure.axes:
        low, high = axes.get_ylim()
        drawn = [value for line in axes.lines for value in line.get_ydata()]
        assert low < min(drawn) and max(drawn) < high < 2 * max(drawn), "over its own range"
    assert "Each panel has its own scales." in drawing.caption
    (legend,) = drawing.figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted({*layer_wise, *others, ORIGINAL})
    assert "On the left the methods that work layer by layer, on the right the others and L-OBS." in drawing.caption
    assert "DNS changes its masks while it trains." in drawing.caption
    assert "bands: from the least to the largest seed" in drawing.caption
    marked = [len(line.get_markevery()) for axes in drawing.figure.axes for line in axes.lines[:-1]]
    assert max(marked) <= 14, "a noisy line is not covered with markers"


def test_few_methods_share_one_panel_of_retraining(tmp_path: Path) -> None:
    drawing = figure4(load(tmp_path))
    assert drawing is not None
    assert len(drawing.figure.axes) == 1
    assert not any(word in drawing.caption for word in ("On the left", "seed", "DNS"))


def test_the_figures_of_every_method_name_twins_instead_of_hiding_them(tmp_path: Path) -> None:
    experiment = load_results(write_every(tmp_path / "runs"))[0]
    for draw in (figure2, figure3, figure5):
        drawing = draw(experiment)
        assert drawing is not None
        assert "L-OBS iterative has the same curve as L-OBS." in drawing.caption
        assert "exact OBS sequential and exact OBS iterative have the same curve as exact OBS." in drawing.caption
        (legend,) = drawing.figure.legends
        assert not any("iterative" in text.get_text() for text in legend.get_texts())
        assert ("over those of all methods where several have one curve" in drawing.caption) == (draw != figure3)
        assert "lobs_iterative" in {record["method"] for record in drawing.records}, "its numbers are in the CSV"


def test_methods_can_be_told_apart_in_colour_and_in_grey() -> None:
    styles = list(STYLES.values())
    assert len({style.color for style in styles}) == len(styles)
    assert len({(style.marker, style.filled) for style in styles}) == len(styles)
    assert len({style.label for style in styles}) == len(styles)
    for style in styles:
        assert style.filled == (style.line == "-"), "hollow on a dashed line"


def test_without_data_there_is_no_figure(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in [*runs.rglob("*.csv"), *runs.rglob("sensitivities.json")]:
        path.unlink()
    stems = [drawing.stem for drawing in draw_all(load_results(runs)[0])]
    assert stems == ["bound-lenet300", "retraining-lenet300"], "these need the metrics alone"
    for path in [*runs.rglob("evaluate/metrics.json"), *runs.rglob("retrain/metrics.json")]:
        path.unlink()
    assert draw_all(load_results(runs)[0]) == []


def test_figure5_of_many_layers_draws_those_with_the_most_weights(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    columns = ("layer", "density", "error", "relative_error", "sensitivity_threshold")
    points = [(f"l{k}", density, 1 - density, 1 - density, "") for k in range(14) for density in (1.0, 0.5, 0.0)]
    evaluated = json.loads((runs / "lenet300/seed0/lobs/evaluate/metrics.json").read_text())
    layer = evaluated["pruned"]["layers"][0]
    evaluated["pruned"]["layers"] = [{**layer, "name": f"l{k}", "shape": [3, 14 - k]} for k in range(14)]
    for method in ("lobs", "magnitude"):
        write_csv(runs / "lenet300/seed0" / method / "prune/paths.csv", columns, points)
        write_json(runs / "lenet300/seed0" / method / "evaluate/metrics.json", {**evaluated, "method": method})
    drawing = figure5(load_results(runs)[0])
    assert drawing is not None
    assert [axes.get_title() for axes in drawing.figure.axes] == [f"l{k}" for k in range(12)]
    assert {record["layer"] for record in drawing.records} == {f"l{k}" for k in range(12)}
    assert "Drawn are the 12 layers with the most weights, of 14." in drawing.caption


def test_methods_without_a_style_get_their_own_name_and_a_steady_colour() -> None:
    assert style_of("newcomer") == style_of("newcomer")
    assert style_of("newcomer").label == "newcomer"
    assert style_of("newcomer").color not in {style.color for style in STYLES.values()}
    assert style_of("lobs", "lobs").label == "L-OBS"
    assert style_of("lobs", "lobs-loose").label == "L-OBS [lobs-loose]"


@pytest.mark.parametrize(("pruned", "more"), [(3.3, True), (60.0, False)])
def test_figure4_has_more_ticks_where_the_errors_are_close(tmp_path: Path, pruned: float, more: bool) -> None:
    methods = {"lobs": EVERY["lobs"]._replace(pruned=pruned, noise=0.0)}
    drawing = figure4(load_results(write_runs(tmp_path / "runs", methods=methods))[0])
    assert drawing is not None
    axes = drawing.figure.axes[0]
    ticks = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert (2.5 in ticks) == more and 2 in ticks
