"""Which of several ways to share a budget out is taken, by the outputs that it leaves."""

from dataclasses import replace

import pytest
import torch

import lobs
from helpers.networks import X, conv, mlp, no_grad_trunk
from lobs.allocation import sharing as sharing_module
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget
from lobs.allocation.loss_curves import fisher
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, Sharing
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.output_fisher import output_sensitivity
from lobs.solvers.recomputed import RecomputedPath

CANDIDATES = ("fisher", "fisher_summed", "fisher_units", "uniform")


def test_candidates_are_compared_on_what_is_held_out_and_else_on_the_first_inputs(case, monkeypatch):
    assert Sharing(Budget(density=0.3)).compared_on is None
    monkeypatch.setattr(sharing_module, "MEASURED_IMAGES", 64)
    assert torch.equal(torch.cat(list(Sharing(Budget(density=0.3), batches=case[1]).compared_on)), X[:64])
    sharing = Sharing(Budget(density=0.3), batches=case[1].part(0, 2), held_out=case[1].part(2, 4))
    assert torch.equal(torch.cat(list(sharing.compared_on)), X[128:192])


def distances(measure, paths, decisions):
    return {
        name: measure.with_weights(
            {layer: found.weighted(layer, path).at(found.counts[layer])[0] for layer, path in paths.items()}
        )
        for name, found in decisions.items()
    }


@pytest.mark.parametrize("density", [0.6, 0.3, 0.1])
@pytest.mark.parametrize("method", ["magnitude", "exact_obs"])
@pytest.mark.parametrize("network", [mlp, conv])
def test_global_takes_the_candidate_whose_outputs_are_nearest(network, method, density):
    inputs = X.reshape(-1, 1, 4, 4) if network is conv else X
    model, batches = network(), CalibrationBatches(list(inputs.split(64)))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), method)
    tried = {name: Sharing(Budget(density=density), name, batches).decision(model, paths, {}) for name in CANDIDATES}
    expected = distances(OutputDistance(model, batches), paths, tried)
    found = Sharing(Budget(density=density), "global", batches).decision(model, paths, {})
    assert found.compared == pytest.approx(expected)
    assert list(found.compared) == list(CANDIDATES)
    best = min(expected, key=expected.get)
    assert (found.shared_by, found.distance, found.gave_way) == (best, "kl", best == "uniform")
    assert found.counts == tried[best].counts
    assert found.unit_weights == tried[best].unit_weights
    assert found.doubtful == (expected[best] > 0.5 * expected["uniform"])


def test_positions_of_an_image_are_together_in_one_candidate_and_apart_in_the_other():
    model, batches = conv(), CalibrationBatches(list(X.reshape(-1, 1, 4, 4).split(64)))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "exact_obs")
    units = output_sensitivity(model, list(batches)[:2])
    assert not torch.allclose(units["0"].together, units["0"].apart)
    for name, summed in (("fisher", False), ("fisher_summed", True)):
        found = Sharing(Budget(density=0.3), name, batches).decision(model, paths, {})
        losses = fisher(paths, units, summed)
        assert found == Decision(allocate(paths, Budget(density=0.3), name, losses=losses), name, "kl")


def test_candidates_that_remove_the_same_weights_are_measured_once(case, monkeypatch):
    """In a network without positions ``fisher`` and ``fisher_summed`` are the same."""
    model, batches, paths = case
    measure, seen = OutputDistance.with_weights, []

    def watched(self, weights):
        seen.append(weights)
        return measure(self, weights)

    monkeypatch.setattr(OutputDistance, "with_weights", watched)
    found = Sharing(Budget(density=0.3), "global", batches).decision(model, paths, {})
    assert list(found.compared) == list(CANDIDATES)
    assert found.compared["fisher"] == found.compared["fisher_summed"]
    assert len(seen) == 3


def test_held_out_inputs_decide_on_what_others_have_measured(case):
    model, _, paths = case
    learned, others = (CalibrationBatches(list(part.split(64))) for part in (X[:192], X[192:] + 1))
    tried = {name: Sharing(Budget(density=0.3), name, learned).decision(model, paths, {}) for name in CANDIDATES}
    for held_out, looked_at in ((others, others), (None, learned)):
        expected = distances(OutputDistance(model, looked_at), paths, tried)
        found = Sharing(Budget(density=0.3), "global", learned, held_out).decision(model, paths, {})
        assert found.compared == pytest.approx(expected)
        assert found.shared_by == min(expected, key=expected.get)
        assert found.counts == tried[found.shared_by].counts


def test_global_without_gradients_compares_relative_and_uniform_and_says_so():
    model, batches = no_grad_trunk(), CalibrationBatches(list(X.split(64)))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "exact_obs")
    budget, note = Budget(density=0.3), "allocation='global' knew no gradients: layer 'a': no gradient reaches it"
    tried = {name: Sharing(budget, name, batches).decision(model, paths, {}) for name in ("relative", "uniform")}
    assert tried["relative"].counts != tried["uniform"].counts
    on_either = set()
    for inputs in X.split(16):  # now the one is nearer, now the other
        held_out = CalibrationBatches([inputs])
        expected = distances(OutputDistance(model, held_out), paths, tried)
        found = Sharing(budget, "global", batches, held_out).decision(model, paths, {})
        assert found.compared == pytest.approx(expected)
        assert found.shared_by == min(expected, key=expected.get)
        assert (found.counts, found.distance) == (tried[found.shared_by].counts, "kl")
        assert note in found.note
        assert ("gave way to 'uniform'" in found.note) == found.gave_way == (found.shared_by == "uniform")
        on_either.add(found.shared_by)
    assert on_either == {"relative", "uniform"}
    forgotten = {name: RecomputedPath(path, lambda path=path: path) for name, path in paths.items()}
    unseen = Sharing(budget, "global", batches).decision(model, forgotten, {})
    assert unseen.counts == tried["relative"].counts
    assert unseen.note.startswith("allocation='global' took 'relative' unseen") and note in unseen.note
    for name in ("fisher", "fisher_summed", "fisher_units"):
        with pytest.raises(ValueError, match="no gradient reaches it from the network's outputs"):
            Sharing(budget, name, batches).decision(model, paths, {})


def test_candidates_that_are_all_infinitely_far_are_not_told_apart(case, monkeypatch):
    monkeypatch.setattr(OutputDistance, "with_weights", lambda *_: float("inf"))
    model, batches, paths = case
    found = Sharing(Budget(density=0.3), "global", batches).decision(model, paths, {})
    assert found.note.startswith("allocation='global' took 'fisher' unseen: every candidate's outputs")


def test_the_dense_networks_outputs_count_where_the_paths_start_from_another(case):
    _, batches, _ = case
    dense, start = mlp(), mlp()
    with torch.no_grad():
        start[0].weight[:, :4] = 0
    paths = lobs.layer_paths(start, lobs.collect_statistics(start, batches), "magnitude")
    sharing = Sharing(Budget(density=0.3), "global", batches)
    tried = {name: replace(sharing, allocation=name).decision(start, paths, {}) for name in CANDIDATES}
    found = sharing.decision(start, paths, {}, None, dense)
    weights = {layer: found.weighted(layer, path).at(found.counts[layer])[0] for layer, path in paths.items()}
    measure = OutputDistance(dense, batches)
    assert found.compared[found.shared_by] == pytest.approx(measure.with_weights(weights))
    assert found.compared == pytest.approx(distances(measure, paths, tried))


@pytest.mark.parametrize(
    ("allocation", "measured", "expected"),
    [
        ("uniform", True, {("uniform", None)}),
        ("relative", True, {("relative", None)}),
        ("theorem", True, {("theorem", None)}),
        ("global", False, {("relative", None)}),
        ("global", True, {(name, "kl") for name in CANDIDATES}),
        ("fisher", True, {("fisher", "kl")}),
        ("fisher_summed", True, {("fisher_summed", "kl")}),
        ("fisher_units", True, {("fisher_units", "kl")}),
        ("measured", True, {("measured", "kl")}),
        ("measured_joint", True, {("measured_joint", "kl")}),
    ],
)
def test_what_shared_it_out_is_no_alias(case, allocation, measured, expected):
    model, batches, paths = case
    found = Sharing(Budget(density=0.3), allocation, batches if measured else None).decision(model, paths, {})
    assert (found.shared_by, found.distance) in expected
