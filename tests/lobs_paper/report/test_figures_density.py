from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import METHODS, write_csv, write_every, write_runs
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.figures_density import density_figure
from lobs_paper.report.methods import STYLES
from lobs_paper.report.results import load_results

COLUMNS = ("density", "test_error_percent", "output_error")
DENSE = "dense network (1.70%)"


def draw(runs: Path) -> Drawing:
    drawing = density_figure(load_results(runs)[0])
    assert drawing is not None
    return drawing


def lines(drawing: Drawing, panel: int = 0) -> dict:
    return {line.get_label(): line for line in drawing.figure.axes[panel].lines}


def test_a_line_per_method_on_logarithmic_axes_beside_the_dense_error(tmp_path: Path) -> None:
    drawing = draw(write_runs(tmp_path / "runs"))
    (axes,) = drawing.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    left, right = axes.get_xlim()
    assert left > 50 > 0.9 > right, "less is kept to the right, as in the figures over weights removed"
    assert set(lines(drawing)) == {"L-OBS", STYLES["magnitude"].label, DENSE}
    assert set(lines(drawing)[DENSE].get_ydata()) == {1.7}
    assert list(lines(drawing)["L-OBS"].get_xdata())[:3] == [50.0, 30.0, 20.0]
    assert (drawing.stem, drawing.columns[-3:]) == ("density-lenet300", COLUMNS)
    assert "seed" not in drawing.caption, "there is one"


def test_seeds_whose_densities_differ_a_little_are_averaged(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1), methods={"lobs": METHODS["lobs"]})
    curves = ([(0.07, 3.0, 1), (0.05, 9.0, 1), (0.03, 0.0, 1)], [(0.0704, 4.0, 1), (0.04, 9.0, 1), (0.03, 9.0, 1)])
    for seed, curve in enumerate(curves):
        write_csv(runs / f"lenet300/seed{seed}/lobs/prune/density_curve.csv", COLUMNS, curve)
    drawing = draw(runs)
    line = lines(drawing)["L-OBS"]
    assert list(line.get_xdata()) == [pytest.approx(7.02)], "only what all seeds have; no error of zero"
    assert list(line.get_ydata()) == [3.5]
    band = drawing.figure.axes[0].collections[0].get_paths()[0].vertices
    assert {float(y) for _, y in band} == {3.0, 4.0}
    assert len(drawing.records) == 6, "the CSV holds every point"


def test_every_method_is_drawn_once_in_one_of_two_panels(tmp_path: Path) -> None:
    drawing = draw(write_every(tmp_path / "runs"))
    left, right = ([label for label in lines(drawing, panel) if label != DENSE] for panel in (0, 1))
    names = ("lobs", "lobs_resolve", "exact_obs", "exact_obs_sequential", "net_trim", "net_trim_cascade")
    assert left == [STYLES[name].label for name in names]
    assert right == [STYLES[name].label for name in ("magnitude", "dns", "lobs", "obd", "apoz", "random")]
    assert "exact OBS iterative has the same curve as exact OBS." in drawing.caption
    assert "Lines of one seed have no band." in drawing.caption
    assert "a line begins at those of its own seeds" in drawing.caption
    low, high = drawing.figure.axes[0].get_ylim()
    drawn = [value for axes in drawing.figure.axes for line in axes.lines for value in line.get_ydata()]
    assert low < min(drawn) and max(drawn) < high


def test_without_curves_there_is_no_figure(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in runs.rglob("density_curve.csv"):
        path.unlink()
    assert density_figure(load_results(runs)[0]) is None
