"""A point of the density curve against the network itself."""

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.density_curve import curve_point
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision
from lobs.layers.matrix import weight_matrix


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
