from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import METHODS, write_csv, write_every, write_json, write_runs
from lobs_paper.report.figures_hessian import draw_hessian
from lobs_paper.report.figures_largest import draw_largest
from lobs_paper.report.figures_methods import bound_figure, retraining_figure
from lobs_paper.report.figures_overview import draw_overview
from lobs_paper.report.figures_solvers import draw_solvers
from lobs_paper.report.results import load_results

ROOT = Path(__file__).parents[3]


def test_the_bound_lies_above_the_dotted_line_where_it_holds(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    drawing = bound_figure(load_results(runs)[0])
    assert drawing is not None
    (axes,) = drawing.figure.axes
    marks = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines}
    assert marks["L-OBS"] == [(4.0, 400.0), (5.0, 400.0)]
    assert "It is above the dotted line; the bound is 80 to 100 times the error." in drawing.caption
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["bound"] = 2.0
    write_json(path, data)
    assert "NOT always above" in bound_figure(load_results(runs)[0]).caption


def test_retraining_is_drawn_from_before_to_after_beside_the_papers(tmp_path: Path) -> None:
    drawing = retraining_figure(load_results(write_runs(tmp_path / "runs"))[0])
    assert drawing is not None
    records = {record["method"]: record for record in drawing.records}
    lobs = records["lobs"]
    assert (lobs["after_pruning_percent"], lobs["after_retraining_percent"], lobs["iterations"]) == (3.3, 1.85, 510)
    assert (lobs["after_pruning_paper_percent"], lobs["after_retraining_paper_percent"]) == (3.1, 1.82)
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["L-OBS, 7%, 510 it.", "LWC (magnitude, one shot), 8%, 4,000 it."]


def test_the_picture_at_the_top_marks_the_papers_error(tmp_path: Path) -> None:
    runs = write_every(tmp_path / "runs")
    write_every(runs, "lenet5")
    write_every(runs, "mine")
    drawing = draw_overview(load_results(runs))
    assert drawing is not None
    assert [axes.get_title() for axes in drawing.figure.axes] == ["LeNet-300-100, MNIST", "LeNet-5, MNIST"]
    for axes, error in zip(drawing.figure.axes, (3.1, 3.21), strict=True):
        (mark,) = [line for line in axes.lines if str(line.get_label()).startswith("the paper")]
        assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([7], [error])
    assert {record["method"] for record in drawing.records} == {
        *("magnitude", "lobs", "exact_obs", "exact_obs_sequential"),
    }


def test_figure6_is_of_the_largest_network_and_says_which(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_runs(runs, "efficientnet_lite0")
    train = runs / "efficientnet_lite0/seed0/train/metrics.json"
    larger = {"parameters": 4_650_000, "data": "ImageNet sample", "test_top5_error_percent": 3.0}
    write_json(train, {**json.loads(train.read_text()), **larger})
    drawing = draw_largest(load_results(runs))
    assert drawing is not None
    assert (
        "This is EfficientNet-Lite0, ImageNet sample, the largest network that was run here; top-1" in drawing.caption
    )
    for method in METHODS:
        columns = ("density", "test_error_percent", "test_top5_error_percent", "output_error")
        points = [(0.5, 20.0, 5.0, 1.0), (0.25, 60.0, 40.0, 2.0)]
        write_csv(runs / "efficientnet_lite0/seed0" / method / "prune/density_curve.csv", columns, points)
    drawing = draw_largest(load_results(runs))
    assert drawing is not None
    line = drawing.figure.axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([50.0, 25.0], [95.0, 60.0])
    assert "top-5 accuracy" in drawing.caption
    assert "dense network (97.00%)" in [line.get_label() for line in drawing.figure.axes[0].lines]


def test_solvers_are_drawn_from_the_benchmarks_file(tmp_path: Path) -> None:
    assert draw_solvers(tmp_path) is None
    row = {"solver": "exact_obs, float32", "density": 0.07, "error": 1.6, "relative_error": 0.01}
    row |= {"path_seconds": 0.5, "count_seconds": 0.25}
    write_json(
        tmp_path / "solvers.json",
        {"layer": "fc1", "shape": [300, 784], "threads": 2, "rows": [row, {**row, "density": 0.2}]},
    )
    drawing = draw_solvers(tmp_path)
    assert drawing is not None
    assert [(record["seconds"], record["error"]) for record in drawing.records] == [(0.75, 1.6)]
    assert "Layer fc1 (300 x 784)" in drawing.caption


def test_figure1_is_a_real_hessian_of_equal_blocks_the_same_on_every_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/hessian.py"), "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(printed.rpartition(" ")[2]) < 1e-12, "half of it is the library's second moment, block by block"
    assert (tmp_path / "figure1.csv").read_text() == (ROOT / "reports/figure1.csv").read_text()
    with (tmp_path / "figure1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24**2
    for row in rows:
        if int(row["row"]) // 6 != int(row["column"]) // 6:
            assert float(row["hessian"]) == float(row["inverse"]) == 0.0
    drawing = draw_hessian(tmp_path)
    assert drawing is not None
    assert "Outside the diagonal blocks the largest entry is 0;" in drawing.caption
    assert drawing.columns == (), "its numbers stand in the file already"


def test_a_figure1_with_a_missing_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "figure1.csv").write_text("row,column,unit,hessian,inverse\n0,0,0,1,1\n1,1,0,1,1\n")
    with pytest.raises(ValueError, match=r"figure1\.csv: 2 rows need 4 entries, got 2"):
        draw_hessian(tmp_path)


def test_without_data_there_are_no_such_figures(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("*.csv"):
        path.unlink()
    experiments = load_results(runs)
    assert draw_overview(experiments) is draw_largest(experiments) is draw_hessian(tmp_path) is None
