"""What stage prune writes beside the network, against plain loops; the stage itself runs in test_stages.py."""

from __future__ import annotations

import copy
from math import floor, log10

import pytest
import torch

import lobs
from helpers.classifier import data, network
from lobs.layers.matrix import set_weight_matrix
from lobs_paper.stages.prune import (
    BUDGETS,
    COSTLY_BUDGETS,
    _stages,
    before_refit,
    budgets,
    density_curve,
    error_curve,
    first_layer_curve,
    layer_rows,
    sensitivity_histogram,
)
from lobs_paper.training.evaluation import error_percent, output_error

DENSITIES = [1.0, 0.5, 0.2]


@pytest.fixture(scope="module")
def pruned():
    """A network, its statistics and its paths by L-OBS."""
    model = network().eval()
    statistics = lobs.collect_statistics(model, [data()[:][0]], keep_samples=50)
    return model, statistics, lobs.layer_paths(model, statistics, "lobs")


def test_records_go_without_their_durations(pruned):
    model, statistics, _ = pruned
    result = lobs.prune(model, statistics, "lobs", density=0.3)
    rows = layer_rows(result)
    assert [row["name"] for row in rows] == ["1", "3"]
    assert all(
        "seconds" not in row and row["kept"] == record.kept for row, record in zip(rows, result.layers, strict=True)
    )


def test_a_paths_errors_are_its_own_at_every_density_that_it_reaches(pruned):
    model, statistics, paths = pruned
    rows = error_curve("1", paths["1"])
    whole = float(model[1](data()[:][0].flatten(1)).detach().double().square().sum(1).mean())
    for row in rows:
        error = paths["1"].layer_error(round((1 - row["density"]) * 96))
        assert row["layer"] == "1"
        assert row["error"] == error
        assert row["relative_error"] == pytest.approx(error / whole, rel=1e-4)
    halves = lobs.layer_paths(model, statistics, lobs.solvers.make("magnitude", pattern="2:4"))
    reached = error_curve("1", halves["1"])
    assert 0 < len(reached) < len(rows)
    assert min(row["density"] for row in reached) >= 0.5 - 0.5 / 96
    assert {row["sensitivity_threshold"] for row in reached} == {None}


def test_the_first_layer_is_pruned_alone(pruned):
    model, _, paths = pruned
    measured = data(60, seed=1)
    before = copy.deepcopy(model.state_dict())
    rows = first_layer_curve(model, "1", paths["1"], measured, DENSITIES)
    assert [row["density"] for row in rows] == pytest.approx(sorted(DENSITIES), abs=0.01)
    for row in rows:
        alone = copy.deepcopy(model)
        set_weight_matrix(alone[1], paths["1"].at(round((1 - row["density"]) * 96))[0])
        assert row["test_accuracy_percent"] == 100 - error_percent(alone, measured)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_whole_network_is_measured_at_every_density_that_can_be_had(pruned):
    model, statistics, _ = pruned
    measured, calibration = data(60, seed=1), data()

    def prune_to(density):
        if density == 0.5:
            raise ValueError("not this one")
        return lobs.prune(model, statistics, "lobs", density=density)

    rows = density_curve(prune_to, DENSITIES, model, calibration, measured)
    assert [row["density"] for row in rows] == [prune_to(density).density for density in (1.0, 0.2)]
    for row, density in zip(rows, (1.0, 0.2), strict=True):
        found = prune_to(density).model
        assert row["test_error_percent"] == error_percent(found, measured)
        assert row["output_error"] == pytest.approx(output_error(model, found, calibration), rel=1e-5, abs=1e-9)


def test_costly_methods_are_measured_at_fewer_densities(pruned):
    model, statistics, paths = pruned
    assert budgets({"sequential": False, "refit": False}, paths) == BUDGETS
    assert budgets({"sequential": True, "refit": False}, paths) == COSTLY_BUDGETS["sequential"]
    assert budgets({"sequential": True, "refit": 100}, paths) == COSTLY_BUDGETS["refitted"]
    path = lobs.layer_paths(model, statistics, "magnitude")["1"]
    solved = copy.copy(path)
    solved._cheap = lambda: [0, path.total]
    assert budgets({"sequential": False}, {"1": solved}) == COSTLY_BUDGETS["solved"]


def test_sensitivities_are_counted_by_decades(pruned):
    model, statistics, paths = pruned
    found = sensitivity_histogram("1", paths["1"])
    values = paths["1"].sensitivities.flatten().tolist()
    edges = found["log10_edges"]
    assert found["layer"] == "1"
    assert sum(found["counts"]) == len(values) == 96
    assert edges[0] == floor(log10(min(values))) and edges[-1] >= log10(max(values))
    logs = torch.tensor(values, dtype=torch.float64).log10()
    for low, high, count in zip(edges, edges[1:], found["counts"], strict=False):
        assert count == int(((logs >= low) & (logs < high)).sum())
    assert found["share_below_0.001"] == sum(value < 1e-3 for value in values) / 96
    assert sensitivity_histogram("1", lobs.layer_paths(model, statistics, "magnitude")["1"]) == {}


def test_errors_after_a_refit_stand_beside_those_before_it(pruned):
    model, statistics, _ = pruned
    measured, calibration = data(60, seed=1), data()
    batches = [inputs for inputs, _ in calibration.batches(10)]

    def prune_to(density):
        return lobs.prune(model, statistics, "lobs", density=density, batches=batches, refit=True)

    result = prune_to(0.2)
    plain = lobs.prune(model, statistics, "lobs", density=0.2).model
    assert all(torch.equal(a, b) for a, b in zip(before_refit(result).parameters(), plain.parameters(), strict=True))
    (row,) = density_curve(prune_to, [0.2], model, calibration, measured)
    assert row["test_error_percent"] == error_percent(plain, measured)
    assert row["test_error_after_refit_percent"] == error_percent(result.model, measured)
    assert row["output_error_after_refit"] < row["output_error"]


@pytest.mark.parametrize(
    ("stages", "budget", "expected"),
    [
        (3, {"density": 0.1}, 3),
        ([0.4, 0.2], {"density": 0.1}, [0.4, 0.2]),
        ([0.4, 0.2], {"density": 0.3}, [0.4]),
        ([0.4, 0.2], {"density": 0.5}, 1),
    ],
)
def test_a_curves_looser_points_go_through_the_stages_above_them(stages, budget, expected):
    assert _stages(stages, budget) == expected
