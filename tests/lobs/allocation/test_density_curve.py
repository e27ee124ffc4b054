"""A point of the density curve against the network itself."""

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.density_curve import DENSITIES, curve_point
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision
from lobs.layers.consumers import consumers_of
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import prunable_layers


@pytest.mark.parametrize("weights", [None, {"0": 2.0, "2": 0.5, "4": 1.0}])
def test_a_point_is_the_network_that_the_decision_gives(weights):
    model, batches = mlp(), list(X.split(64))
    with torch.no_grad():
        weight_matrix(model[0])[::2, 1] = 0.0  # removed already
    statistics = lobs.collect_statistics(model, batches)
    paths = lobs.layer_paths(model, statistics, "exact_obs")
    counts = {name: path.total // 2 for name, path in paths.items()}
    units = weights and {
        name: torch.linspace(0.5, value, len(path.weight)).tolist()
        for (name, path), value in zip(paths.items(), weights.values(), strict=True)
    }
    decision, measure = Decision(counts, unit_weights=units), OutputDistance(model, batches)
    point = curve_point(paths, decision, {}, measure)
    found = {name: decision.weighted(name, path).at(counts[name])[0] for name, path in paths.items()}
    assert point.distance == measure.with_weights(found)
    assert curve_point(paths, decision, {}, None).distance is None
    errors = []
    for name, weight in found.items():
        change, trained = weight - paths[name].weight, weight_matrix(model.get_submodule(name))
        moment = statistics[name].second_moment
        error, power = (float(((part.double() @ moment) * part).sum()) for part in (change, trained))
        errors.append(error / power)
        assert point.layers[name] == pytest.approx((1 - counts[name] / paths[name].removable, error / power))
    assert point.relative_error == pytest.approx(sum(errors) / 3)
    total = sum(path.removable for path in paths.values())
    assert point.density == pytest.approx(1 - sum(counts.values()) / total)


def test_the_densities_that_are_looked_at_fall_from_a_half_to_a_hundredth():
    assert list(DENSITIES) == sorted(set(DENSITIES), reverse=True)
    assert (DENSITIES[0], DENSITIES[-1]) == (0.5, 0.01)
    assert all(0 < density < 1 for density in DENSITIES)


def test_units_take_the_columns_that_read_them_along():
    model, batches = mlp(), list(X.split(64))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    links, measure = consumers_of(prunable_layers(model)), OutputDistance(model, batches)
    point = curve_point(paths, Decision({"0": 8 * 16, "2": 6 * 32, "4": 0}), links, measure)
    # Of 32 units of 16 weights 24 are left, of 24 units of 32 weights 18, and all four of 24.
    shares = {"0": 24 * 16 / (32 * 16), "2": 18 * 24 / (24 * 32), "4": 4 * 18 / (4 * 24)}
    assert {name: share for name, (share, _) in point.layers.items()} == pytest.approx(shares)
    assert point.density == pytest.approx((24 * 16 + 18 * 24 + 4 * 18) / (32 * 16 + 24 * 32 + 4 * 24))
    pruned = lobs.prune(model, method="apoz", density=point.density, batches=batches)
    assert point.distance == pytest.approx(measure.of_network(pruned.model))


def test_a_layer_without_any_power_has_no_relative_error():
    model, batches = mlp(), list(X.split(64))
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "magnitude")
    counts = {name: path.total // 2 for name, path in paths.items()}
    point = curve_point(paths, Decision(counts), {}, None)
    assert point.layers["2"] == (0.0, 0.0), "what is zero already counts as removed"
    assert point.layers["0"][0] == 0.5 and point.layers["0"][1] > 0
    assert point.relative_error == pytest.approx(sum(error for _, error in point.layers.values()) / 3)
