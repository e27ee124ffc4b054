"""Pictures: the numbers that are drawn, and one sentence where matplotlib is missing."""

import sys

import matplotlib
import pytest

import lobs
from helpers.networks import X, mlp

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def widths(axes):
    return [bar.get_width() for bar in axes.patches]


def test_a_result_shows_what_every_layer_keeps_and_loses(tmp_path):
    result = lobs.prune(mlp(), lobs.collect_statistics(mlp(), [X]), method="magnitude", density=0.3)
    figure = result.plot()
    left, right = figure.axes
    assert widths(left) == [record.density for record in result.layers]
    assert widths(right) == [record.relative_error for record in result.layers]
    assert [label.get_text() for label in left.get_yticklabels()] == [record.name for record in result.layers]
    figure.savefig(tmp_path / "layers.png")


@pytest.mark.parametrize("given", [{}, {"batches": [X]}])
def test_a_plan_shows_what_densities_cost(given):
    model = mlp()
    plan = lobs.plan(model, lobs.collect_statistics(model, [X]), method="magnitude", **given)
    points = plan.curve([0.5, 0.2])
    figure = plan.plot([0.5, 0.2])
    drawn = [list(axes.lines[0].get_ydata()) for axes in figure.axes]
    assert drawn[0] == [point.relative_error for point in points]
    assert drawn[1:] == ([[point.distance for point in points]] if given else [])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    result = lobs.prune(mlp(), batches=[X], method="magnitude", density=0.3)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'lobs\[plots\]'"):
        result.plot()
