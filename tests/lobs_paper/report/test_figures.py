from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers.runs import EVERY, METHODS, write_csv, write_every, write_json, write_runs
from lobs_paper.report import figures, network_figures
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.frame import load_results
from lobs_paper.report.methods import STYLES, style_of

ORIGINAL, DENSE = "original error (1.70%)", "dense network (1.70%)"


def draw_all(runs: Path) -> list[Drawing]:
    return figures.draw(figures.NETWORK, load_results(runs), runs)


def draw(function: Callable, runs: Path) -> Drawing:
    entries = [entry for entry in (*figures.NETWORK, *figures.COMMON) if entry.draw is function]
    (drawing,) = figures.draw(entries, load_results(runs), runs)
    return drawing


def lines(drawing: Drawing, panel: int = 0) -> dict:
    return {line.get_label(): line for line in drawing.figure.axes[panel].lines}


def test_every_figure_is_written_as_svg_png_and_csv(tmp_path: Path) -> None:
    drawings = draw_all(write_runs(tmp_path / "runs"))
    stems = ["density-lenet300", "figure2", "figure3", "figure4-lenet300", "figure5"]
    stems += ["bound-lenet300", "retraining-lenet300"]
    assert [drawing.stem for drawing in drawings] == stems
    for drawing in drawings:
        svg, png, table = drawing.write(tmp_path / "reports")
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(drawing.data) > 0
        assert list(rows[0])[:3] == ["experiment", "method", "folder"]


def test_the_same_metrics_give_the_same_bytes(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    first, second = (
        [path.read_bytes() for drawing in draw_all(runs) for path in drawing.write(tmp_path / folder)]
        for folder in ("first", "second")
    )
    assert first == second


def test_the_papers_own_experiment_has_the_plain_name(tmp_path: Path) -> None:
    names = [drawing.stem for drawing in draw_all(write_runs(tmp_path / "runs", "lenet5"))]
    papers = ["density-lenet5", "figure2-lenet5", "figure3-lenet5", "figure4", "figure5-lenet5"]
    assert names == [*papers, "bound-lenet5", "retraining-lenet5"]


def test_figure2_draws_the_mean_over_seeds_with_its_band(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    for seed, accuracies in ((0, (98.0, 60.0)), (1, (98.0, 80.0))):
        path = runs / f"lenet300/seed{seed}/lobs/prune/first_layer_curve.csv"
        points = [(1.0, accuracies[0]), (0.25, accuracies[1]), (0.1 + 0.1 * seed, 50.0)]
        write_csv(path, ("density", "test_accuracy_percent"), points)
    drawing = draw(network_figures.first_layer, runs)
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
    drawing = draw(network_figures.first_layer, runs)
    line = next(line for line in drawing.figure.axes[0].lines if line.get_label() == "L-OBS")
    assert list(line.get_xdata()) == pytest.approx([0, 50, 80, 90, 100])
    assert list(line.get_ydata()) == pytest.approx([90, 45, 18, 9, 0])
    assert "L-OBS: the first seed alone, whose densities the others do not share." in drawing.caption


def test_a_method_keeps_its_colour_in_all_figures(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for function in (network_figures.first_layer, network_figures.retraining_curve, network_figures.paths):
        drawing = draw(function, runs)
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
    for function in (network_figures.first_layer, network_figures.paths):
        drawing = draw(function, runs)
        assert len(drawing.figure.axes[0].lines) == 2
        assert drawing.caption.endswith("LWC has the same curve as LWC (magnitude, one shot).")
    assert set(draw(network_figures.first_layer, runs).data["method"]) == {"magnitude", "lwc", "lobs"}


def test_figure3_tells_the_share_of_small_sensitivities(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    histogram = {"layer": "fc1", "log10_edges": [-6, -3, 0], "counts": [95, 5], "share_below_0.001": 0.95}
    write_json(runs / "lenet300/seed0/lobs/prune/sensitivities.json", histogram)
    drawing = draw(network_figures.sensitivities, runs)
    assert drawing.caption.partition("Ours: ")[2].startswith("L-OBS: 95.0% below 0.001.")
    assert list(drawing.data["weights"]) == [95, 5]
    outline = drawing.figure.axes[0].patches[-1].get_data()
    assert outline.values == pytest.approx([95.0, 5.0])
    assert outline.edges == pytest.approx([1e-6, 1e-3, 1.0])


def test_figure4_shows_the_original_error(tmp_path: Path) -> None:
    drawing = draw(network_figures.retraining_curve, write_runs(tmp_path / "runs"))
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert set(lines["original error (1.70%)"].get_ydata()) == {1.7}
    assert lines["L-OBS"].get_ydata()[0] == pytest.approx(3.3)
    assert lines["L-OBS"].get_xdata()[-1] == 510


def test_figure4_joins_the_rounds_of_an_iterative_method(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    points = [(1, 0, "", 2.0), (1, 10, 0.1, 1.8), (2, 10, "", 9.0), (2, 15, 0.2, ""), (2, 20, 0.1, 1.9)]
    path = runs / "lenet300/seed0/magnitude/retrain/curve.csv"
    write_csv(path, ("round", "iteration", "train_loss", "test_error_percent"), points)
    drawing = draw(network_figures.retraining_curve, runs)
    line = drawing.figure.axes[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([0, 10, 10, 20], abs=1e-5)
    assert list(line.get_ydata()) == [2.0, 1.8, 9.0, 1.9]


def test_figure5_has_a_panel_per_layer_over_the_root_of_the_error(tmp_path: Path) -> None:
    drawing = draw(network_figures.paths, write_runs(tmp_path / "runs"))
    assert [axes.get_title() for axes in drawing.figure.axes] == ["fc1", "fc2", "fc3"]
    line = drawing.figure.axes[1].lines[0]
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (pytest.approx(50.0**0.5), 100.0)
    assert min(line.get_xdata()) > 0, "an error of zero has no place on a logarithmic axis"


def test_figure5_says_what_a_convolutions_samples_are(tmp_path: Path) -> None:
    runs = [write_runs(tmp_path / name, name) for name in ("lenet5", "lenet300")]
    captions = [draw(network_figures.paths, folder).caption for folder in runs]
    assert ["(of a convolution: positions in its output)" in caption for caption in captions] == [True, False]


def test_figure5_begins_a_new_row_after_four_layers(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    columns = ("layer", "density", "error", "relative_error", "sensitivity_threshold")
    points = [(f"fc{k}", density, 1 - density, 1 - density, "") for k in range(6) for density in (1.0, 0.5, 0.0)]
    write_csv(runs / "lenet300/seed0/lobs/prune/paths.csv", columns, points)
    (runs / "lenet300/seed0/magnitude/prune/paths.csv").unlink()
    drawing = draw(network_figures.paths, runs)
    axes = drawing.figure.axes
    assert [panel.get_title() for panel in axes] == [f"fc{k}" for k in range(6)]
    assert [bool(panel.get_ylabel()) for panel in axes] == [True, False, False, False, True, False]
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["L-OBS"]


def test_every_method_and_three_seeds_are_drawn_in_two_panels_of_retraining(tmp_path: Path) -> None:
    drawing = draw(network_figures.retraining_curve, write_runs(tmp_path / "runs", seeds=(0, 1, 2), methods=EVERY))
    layer_wise, others = (
        [line.get_label() for line in axes.lines if "original" not in line.get_label()] for axes in drawing.figure.axes
    )
    styles = {name: style for name, style in STYLES.items() if name in EVERY}
    assert layer_wise == [style.label for style in styles.values() if style.layer_wise]
    assert others == [style.label for name, style in styles.items() if not style.layer_wise or name == "lobs"]
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
    drawing = draw(network_figures.retraining_curve, write_runs(tmp_path / "runs"))
    assert len(drawing.figure.axes) == 1
    assert not any(word in drawing.caption for word in ("On the left", "seed", "DNS"))


def test_the_figures_of_every_method_name_twins_instead_of_hiding_them(tmp_path: Path) -> None:
    runs = write_every(tmp_path / "runs")
    for function in (network_figures.first_layer, network_figures.sensitivities, network_figures.paths):
        drawing = draw(function, runs)
        assert "L-OBS iterative has the same curve as L-OBS." in drawing.caption
        assert "exact OBS sequential and exact OBS iterative have the same curve as exact OBS." in drawing.caption
        (legend,) = drawing.figure.legends
        assert not any("iterative" in text.get_text() for text in legend.get_texts())
        assert ("over those of all methods where several have one curve" in drawing.caption) == (
            function != network_figures.sensitivities
        )
        assert "lobs_iterative" in set(drawing.data["method"]), "its numbers are in the CSV"


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
    stems = [drawing.stem for drawing in draw_all(runs)]
    assert stems == ["bound-lenet300", "retraining-lenet300"], "these need the metrics alone"
    for path in [*runs.rglob("evaluate/metrics.json"), *runs.rglob("retrain/metrics.json")]:
        path.unlink()
    assert draw_all(runs) == []


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
    drawing = draw(network_figures.paths, runs)
    assert [axes.get_title() for axes in drawing.figure.axes] == [f"l{k}" for k in range(12)]
    assert set(drawing.data["layer"]) == {f"l{k}" for k in range(12)}
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
    drawing = draw(network_figures.retraining_curve, write_runs(tmp_path / "runs", methods=methods))
    axes = drawing.figure.axes[0]
    ticks = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert (2.5 in ticks) == more and 2 in ticks


def test_a_line_per_method_on_logarithmic_axes_beside_the_dense_error(tmp_path: Path) -> None:
    drawing = draw(network_figures.density, write_runs(tmp_path / "runs"))
    (axes,) = drawing.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    left, right = axes.get_xlim()
    assert left > 50 > 0.9 > right, "less is kept to the right, as in the figures over weights removed"
    assert set(lines(drawing)) == {"L-OBS", STYLES["magnitude"].label, DENSE}
    assert set(lines(drawing)[DENSE].get_ydata()) == {1.7}
    assert list(lines(drawing)["L-OBS"].get_xdata())[-3:] == [20.0, 30.0, 50.0]
    assert list(drawing.data.columns[-3:]) == ["density", "test_error_percent", "output_error"]
    assert "seed" not in drawing.caption, "there is one"


def test_seeds_whose_densities_differ_a_little_are_averaged(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1), methods={"lobs": METHODS["lobs"]})
    curves = ([(0.07, 3.0, 1), (0.05, 9.0, 1), (0.03, 0.0, 1)], [(0.0704, 4.0, 1), (0.04, 9.0, 1), (0.03, 9.0, 1)])
    for seed, curve in enumerate(curves):
        columns = ("density", "test_error_percent", "output_error")
        write_csv(runs / f"lenet300/seed{seed}/lobs/prune/density_curve.csv", columns, curve)
    drawing = draw(network_figures.density, runs)
    line = lines(drawing)["L-OBS"]
    assert list(line.get_xdata()) == [pytest.approx(7.02)], "only what all seeds have; no error of zero"
    assert list(line.get_ydata()) == [3.5]
    band = drawing.figure.axes[0].collections[0].get_paths()[0].vertices
    assert {float(y) for _, y in band} == {3.0, 4.0}
    assert len(drawing.data) == 6, "the CSV holds every point"


def test_every_method_is_drawn_once_in_one_of_two_panels(tmp_path: Path) -> None:
    drawing = draw(network_figures.density, write_every(tmp_path / "runs"))
    left, right = ([label for label in lines(drawing, panel) if label != DENSE] for panel in (0, 1))
    names = ("lobs", "lobs_resolve", "exact_obs", "exact_obs_sequential", "exact_obs_staged", "exact_obs_staged+refit")
    assert left == [style_of(name).label for name in (*names, "net_trim", "net_trim_cascade")]
    assert right == [STYLES[name].label for name in ("magnitude", "dns", "lobs", "obd", "apoz", "random")]
    assert "exact OBS iterative has the same curve as exact OBS." in drawing.caption
    assert "Lines of one seed have no band." in drawing.caption
    assert "a line begins at those of its own seeds" in drawing.caption
    low, high = drawing.figure.axes[0].get_ylim()
    drawn = [value for axes in drawing.figure.axes for line in axes.lines for value in line.get_ydata()]
    assert low < min(drawn) and max(drawn) < high


def test_the_bound_lies_above_the_dotted_line_where_it_holds(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    drawing = draw(network_figures.bounds, runs)
    marks = {label: list(zip(*line.get_data(), strict=True)) for label, line in lines(drawing).items()}
    assert marks["L-OBS"] == [(4.0, 400.0), (5.0, 400.0)]
    assert "It is above the dotted line; the bound is 80 to 100 times the error." in drawing.caption
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["bound"] = 2.0
    write_json(path, data)
    assert "NOT always above" in draw(network_figures.bounds, runs).caption


def test_retraining_is_drawn_from_before_to_after_beside_the_papers(tmp_path: Path) -> None:
    drawing = draw(network_figures.retraining, write_runs(tmp_path / "runs"))
    lobs = drawing.data.set_index("method").loc["lobs"]
    assert (lobs["after_pruning_percent"], lobs["after_retraining_percent"], lobs["iterations"]) == (3.3, 1.85, 510)
    assert (lobs["after_pruning_paper_percent"], lobs["after_retraining_paper_percent"]) == (3.1, 1.82)
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["L-OBS, 7%, 510 it.", "LWC (magnitude, one shot), 8%, 4,000 it."]


def test_the_picture_at_the_top_marks_the_papers_error(tmp_path: Path) -> None:
    runs = write_every(tmp_path / "runs")
    write_every(runs, "lenet5")
    write_every(runs, "mine")
    drawing = draw(network_figures.overview, runs)
    assert [axes.get_title() for axes in drawing.figure.axes] == ["LeNet-300-100, MNIST", "LeNet-5, MNIST"]
    for panel, error in enumerate((3.1, 3.21)):
        (mark,) = [line for label, line in lines(drawing, panel).items() if label.startswith("the paper")]
        assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([7], [error])
    assert set(drawing.data["method"]) == {"magnitude", "lobs", "exact_obs", "exact_obs_sequential"}


def test_figure6_is_of_the_largest_network_and_says_which(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_runs(runs, "efficientnet_lite0")
    train = runs / "efficientnet_lite0/seed0/train/metrics.json"
    larger = {"parameters": 4_650_000, "data": "ImageNet sample", "test_top5_error_percent": 3.0}
    write_json(train, {**json.loads(train.read_text()), **larger})
    text = "This is EfficientNet-Lite0, ImageNet sample, the largest network that was run here; top-1"
    assert text in draw(network_figures.largest, runs).caption
    for method in METHODS:
        columns = ("density", "test_error_percent", "test_top5_error_percent", "output_error")
        points = [(0.5, 20.0, 5.0, 1.0), (0.25, 60.0, 40.0, 2.0)]
        write_csv(runs / "efficientnet_lite0/seed0" / method / "prune/density_curve.csv", columns, points)
    drawing = draw(network_figures.largest, runs)
    line = drawing.figure.axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([25.0, 50.0], [60.0, 95.0])
    assert "top-5 accuracy" in drawing.caption
    assert "dense network (97.00%)" in lines(drawing)


def test_without_curves_no_figure_is_drawn_over_all_networks(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("*.csv"):
        path.unlink()
    assert figures.draw(figures.COMMON, load_results(runs), tmp_path) == []
