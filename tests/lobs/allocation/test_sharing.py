"""How a budget is shared out, and whether measuring has helped."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import Normalised, X, mlp, net, no_grad_trunk
from lobs.allocation import sharing as sharing_module
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget
from lobs.allocation.loss_curves import fisher_units, loss_curves
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, Sharing, fallback_note, outputs_distance, solved
from lobs.allocation.unit_budget import unit_counts
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.output_fisher import output_sensitivity
from lobs.layers.consumers import consumers_of
from lobs.layers.network import prunable_layers
from lobs.solvers.recomputed import RecomputedPath

WORST = {"0": 511, "2": 300, "4": 0}


def test_the_fallback_is_said(monkeypatch):
    """Shares that are worse than uniform ones give way to them."""
    model, options = mlp(), {"batches": list(X.split(64)), "method": "magnitude", "density": 0.3}
    spoil(monkeypatch)
    with pytest.warns(UserWarning, match="allocation='global' gave way to 'uniform'"):
        result = lobs.prune(model, allocation="global", **options)
    assert any("gave way" in note for note in result.notes)
    assert "gave way" in repr(result)
    assert (result.shared_by, result.distance) == ("uniform", "kl")
    uniform = lobs.prune(model, **options)
    assert all(torch.equal(result.masks[name], mask) for name, mask in uniform.masks.items())


def spoil(monkeypatch):
    """All that is measured shares a budget out badly."""
    kept = sharing_module.allocate

    def allocated(paths, budget, allocation="uniform", **rest):
        return kept(paths, budget, allocation, **rest) if allocation == "uniform" else dict(WORST)

    monkeypatch.setattr(sharing_module, "allocate", allocated)


@pytest.mark.parametrize(
    ("budget", "allocation", "together"),
    [
        (Budget(density=0.3), "uniform", False),
        (Budget(density=0.3), "relative", True),
        (Budget(density=0.3, limits={"*": (0.0, 1.0)}), "uniform", True),
        (Budget(flops=0.3), "uniform", True),
        (Budget(size=3000), "uniform", True),
        (Budget(tolerance=0.3), "relative", False),
        (Budget(densities={"0": 0.3}), "relative", False),
    ],
    ids=str,
)
def test_layers_depend_on_each_other_where_a_budget_is_divided(budget, allocation, together):
    assert Sharing(budget, allocation).together == together


def test_a_layers_own_count_is_that_of_all_of_them(case):
    model, _, paths = case
    for budget in (Budget(density=0.3), Budget(tolerance=0.2), Budget(densities={"0": 0.5, "2": 0.2, "4": 1.0})):
        sharing = Sharing(budget)
        counts = sharing.decision(model, paths, {}).counts
        assert {name: sharing.count(name, path) for name, path in paths.items()} == counts


def test_measuring_stops_with_the_batch_that_fills_the_number_of_images(case, monkeypatch):
    assert Sharing(Budget(density=0.3)).images is None
    sharing = Sharing(Budget(density=0.3), batches=case[1])
    assert sharing.images.input_counts() == [64] * 4
    monkeypatch.setattr(sharing_module, "MEASURED_IMAGES", 65)
    assert Sharing(Budget(density=0.3), batches=case[1]).images.input_counts() == [64, 64]


@pytest.mark.parametrize(("most", "seen"), [(2000, 2), (128, 2), (65, 2), (64, 1)])
def test_gradients_are_taken_of_half_the_inputs_and_of_no_more_than_are_measured(case, monkeypatch, most, seen):
    assert Sharing(Budget(density=0.3)).seen_backwards is None
    monkeypatch.setattr(sharing_module, "MEASURED_IMAGES", most)
    found = list(Sharing(Budget(density=0.3), batches=case[1]).seen_backwards)
    assert len(found) == seen
    assert all(torch.equal(one, other) for one, other in zip(found, X.split(64), strict=False))


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.filterwarnings("ignore:allocation='global'")
def test_a_network_without_gradients_is_pruned_all_the_same(planned):
    model, options = no_grad_trunk(), {"density": 0.3, "allocation": "global"}
    if planned:
        result = lobs.plan(model, None, "exact_obs", batches=list(X.split(64))).prune(**options)
    else:
        result = lobs.prune(model, None, "exact_obs", batches=list(X.split(64)), **options)
    assert any("allocation='global' knew no gradients: layer 'a'" in note for note in result.notes)
    assert set(result.compared_allocations) == {"relative", "uniform"}
    assert result.shared_by in result.compared_allocations
    assert result.density == pytest.approx(0.3, abs=0.01)


def test_a_single_allocation_compares_nothing(case):
    model, batches, paths = case
    even = Sharing(Budget(density=0.3)).decision(model, paths, {})
    assert even == Decision(even.counts)
    assert (even.compared, even.note, even.doubtful, even.gave_way) == ({}, None, False, False)
    fisher = Sharing(Budget(density=0.3), "fisher", batches).decision(model, paths, {})
    assert fisher == Decision(fisher.counts, "fisher", "kl")
    assert not fisher.doubtful


def test_worse_shares_give_way_and_paths_that_are_forgotten_are_not_compared(case, monkeypatch):
    model, batches, paths = case
    sharing = Sharing(Budget(density=0.3), "global", batches)
    even = Sharing(Budget(density=0.3)).decision(model, paths, {})
    spoil(monkeypatch)
    found = sharing.decision(model, paths, {})
    assert found.counts == even.counts
    assert (found.shared_by, found.gave_way, found.doubtful, found.unit_weights) == ("uniform", True, True, None)
    assert found.note.startswith("allocation='global' gave way to 'uniform': distance of the outputs")
    forgotten = {name: RecomputedPath(path, lambda path=path: path) for name, path in paths.items()}
    unseen = sharing.decision(model, forgotten, {})
    assert unseen.counts == WORST
    assert unseen.note == "allocation='global' took 'fisher' unseen: the paths do not fit into memory"
    assert (unseen.shared_by, unseen.compared, unseen.gave_way) == ("fisher", {}, False)


def test_shares_that_are_uniform_by_themselves_give_way_to_nothing(case, monkeypatch):
    model, batches, paths = case
    even = Sharing(Budget(density=0.3)).decision(model, paths, {})
    monkeypatch.setattr(sharing_module, "allocate", lambda *rest, **more: dict(even.counts))
    monkeypatch.setattr(sharing_module.OutputDistance, "with_weights", lambda self, weights: next(given))
    given = iter([2.0, 3.0])  # of fisher and fisher_units: the two others remove what fisher does
    found = Sharing(Budget(density=0.3), "global", batches).decision(model, paths, {})
    assert (found.counts, found.shared_by, found.gave_way, found.note) == (even.counts, "fisher", False, None)
    assert found.compared == {"fisher": 2.0, "fisher_summed": 2.0, "fisher_units": 3.0, "uniform": 2.0}


@pytest.mark.parametrize("method", ["magnitude", "exact_obs"])
def test_units_decide_on_the_counts_and_on_the_order_within_a_layer(case, method):
    model, batches, _ = case
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), method)
    sharing = Sharing(Budget(density=0.2), "fisher_units", batches)
    found = sharing.decision(model, paths, {})
    g = {name: units.together for name, units in output_sensitivity(model, list(batches)[:2]).items()}
    assert found.unit_weights == {name: units.tolist() for name, units in g.items()}
    weighted = {name: path.weighted(g[name]) for name, path in paths.items()}
    assert found.counts == allocate(weighted, Budget(density=0.2), "fisher_units", losses=fisher_units(weighted))
    result = lobs.prune(model, None, method, density=0.2, allocation="fisher_units", batches=list(batches))
    for name, path in weighted.items():
        weight, mask = path.at(found.counts[name])
        features = path.statistics.features
        assert torch.equal(result.masks[name], mask[:, :features])
        torch.testing.assert_close(result.model.get_submodule(name).weight, weight[:, :features])
    plain = lobs.prune(model, None, method, density=0.2, batches=list(batches))
    assert any(not torch.equal(result.masks[name], mask) for name, mask in plain.masks.items())


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("allocation", ["fisher_units", "global"])
def test_a_folder_gives_the_same_bytes_again(case, tmp_path, allocation, sequential):
    model, batches, _ = case
    options = {"density": 0.2, "allocation": allocation, "batches": list(batches), "sequential": sequential}
    results = [lobs.prune(model, None, "exact_obs", folder=tmp_path, **options) for _ in range(2)]
    results.append(lobs.prune(model, None, "exact_obs", **options))
    for result in results[1:]:
        assert all(
            torch.equal(value, result.model.state_dict()[key]) for key, value in results[0].model.state_dict().items()
        )
        assert [replace(r, seconds=0) for r in result.layers] == [replace(r, seconds=0) for r in results[0].layers]
        assert (result.shared_by, result.distance) == (results[0].shared_by, results[0].distance)
        assert result.compared_allocations == results[0].compared_allocations


def test_whole_units_take_a_density_alone(case):
    model, batches, _ = case
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    links = consumers_of(prunable_layers(model))
    found = Sharing(Budget(density=0.4)).decision(model, paths, links)
    assert found == Decision(unit_counts(paths, links, 0.4))
    for budget in (Budget(flops=0.4), Budget(density=0.4, limits={"*": (0.0, 1.0)})):
        with pytest.raises(ValueError, match="removes whole units takes a density alone"):
            Sharing(budget).decision(model, paths, links)


def test_what_is_known_is_not_measured_again(case, monkeypatch):
    model, batches, paths = case
    budget = Budget(density=0.3)
    names = ("fisher", "fisher_summed", "fisher_units", "global")
    expected = {name: Sharing(budget, name, batches).decision(model, paths, {}) for name in names}
    seen = list(batches)[:2]
    losses, found = loss_curves(paths, "fisher", model=model, batches=seen), output_sensitivity(model, seen)
    monkeypatch.setattr(sharing_module, "output_sensitivity", None)
    assert Sharing(budget, "fisher", batches, losses=losses).decision(model, paths, {}) == expected["fisher"]
    for name in names:
        sharing = Sharing(budget, name, batches, sensitivities=found)
        assert sharing.decision(model, paths, {}) == expected[name]


@pytest.mark.parametrize("allocation", ["global", "fisher_units"])
def test_losses_of_one_order_are_refused_where_others_are_looked_at(case, allocation):
    losses = loss_curves(case[2], "relative")
    with pytest.raises(ValueError, match=f"losses= belong to one order of the weights, and '{allocation}' looks at"):
        Sharing(Budget(density=0.3), allocation, case[1], losses=losses)


def test_solved_weights_are_the_paths_and_what_read_lost_units_is_gone(case):
    model, batches, paths = case
    counts = {"0": 100, "2": 20, "4": 0}
    forgotten = {name: RecomputedPath(path, lambda path=path: path) for name, path in paths.items()}
    for given in (paths, forgotten):
        for name, (weight, mask) in solved(given, counts, {}).items():
            expected = paths[name].at(counts[name])
            assert torch.equal(weight, expected[0])
            assert torch.equal(mask, expected[1])
    units = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    links = consumers_of(prunable_layers(model))
    found = solved(units, {"0": 16 * 5, "2": 0, "4": 0}, links)
    dead = ~found["0"][1].any(1)
    assert int(dead.sum()) == 5
    assert not found["2"][1][:, :-1][:, dead].any() and not found["2"][0][:, :-1][:, dead].any()
    assert found["2"][1][:, :-1][:, ~dead].all() and found["4"][1].all()


def test_what_measures_needs_inputs(case):
    model, _, paths = case
    for allocation in ("fisher", "fisher_summed", "fisher_units", "measured"):
        with pytest.raises(ValueError, match=f"'{allocation}' needs calibration images: give batches="):
            Sharing(Budget(density=0.3), allocation).decision(model, paths, {})


@pytest.mark.parametrize(
    ("compared", "doubtful"),
    [({}, False), ({"fisher": 0.9, "uniform": 2.0}, False), ({"fisher": 1.1, "uniform": 2.0}, True)],
)
def test_a_choice_that_barely_helps_is_doubtful(compared, doubtful):
    assert Decision({}, "fisher", "kl", compared=compared).doubtful == doubtful


def tiny_layers():
    """A large layer between many of 16 weights, of which a few percent are less than one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 16), *[nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 16)) for _ in range(4)]
    ).eval()


def test_a_choice_that_falls_on_uniform_keeps_to_the_budget():
    model, batches = tiny_layers(), list(X.split(64))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "magnitude")
    whole = sum(path.removable for path in paths.values())
    shares = Sharing(Budget(density=0.05), "global", CalibrationBatches(batches)).decision(model, paths, {})
    assert whole - sum(shares.uniform.values()) <= 0.05 * whole
    assert all(paths[name].removable > count for name, count in shares.uniform.items())
    alone = lobs.prune(model, None, "magnitude", density=0.05, batches=batches)
    assert all(record.kept for record in alone.layers) and alone.density > 0.05
    (note,) = (note for note in alone.notes if "more than 0.05" in note)
    assert note.startswith(f"{alone.density:.4g} of the weights are kept")


def test_inputs_without_a_finite_gradient_are_said_to_count_for_nothing():
    torch.manual_seed(0)
    model, inputs = Normalised(16, 8, 4).eval(), X.clone()
    inputs[3] = 0.0
    for allocation in ("fisher", "global"):
        with pytest.warns(UserWarning, match="the gradients of 1 inputs are NaN or infinite at layer '0'"):
            result = lobs.prune(
                model, None, "exact_obs", density=0.3, allocation=allocation, batches=list(inputs.split(64))
            )
        assert any("1 inputs are NaN or infinite" in note for note in result.notes)


@pytest.mark.parametrize("name", ["even", ["global"], None, 3])
def test_an_allocation_that_is_not_known_is_named(name):
    with pytest.raises(ValueError, match=r"unknown allocation .*: accepted are uniform, global"):
        Sharing(Budget(density=0.3), name)


def test_half_of_uniforms_distance_is_not_doubtful_yet():
    compared = {"relative": 0.1, "fisher": 1.0, "uniform": 2.0}
    assert not Decision({}, "fisher", "kl", compared=compared).doubtful
    assert Decision({}, "uniform", "kl", compared=compared).doubtful
    assert Decision({}, "fisher", "kl", compared={**compared, "fisher": 1.001}).doubtful


def test_decisions_are_the_same_where_counts_and_order_are():
    one = Decision({"a": 1}, "fisher", unit_weights={"a": [1.0]})
    assert one.same_as(Decision({"a": 1}, "uniform", "kl", {"a": [1.0]}, note="said"))
    assert not one.same_as(Decision({"a": 2}, "fisher", unit_weights={"a": [1.0]}))
    assert not one.same_as(Decision({"a": 1}, "fisher"))
    assert not one.same_as(Decision({"a": 1}, "fisher", unit_weights={"a": [2.0]}))


def test_a_distance_that_gives_way_is_said_with_uniforms():
    expected = "allocation='global' gave way to 'uniform': distance of the outputs 1.23, with uniform 0.0456"
    assert fallback_note(1.2345, 0.045612) == expected


def test_uniform_counts_are_kept_beside_what_was_chosen(case, monkeypatch):
    model, batches, paths = case
    even = Sharing(Budget(density=0.3)).decision(model, paths, {})
    found = Sharing(Budget(density=0.3), "global", batches).decision(model, paths, {})
    assert found.uniform == even.counts
    assert even.uniform == {}
    monkeypatch.setattr(OutputDistance, "with_weights", lambda self, weights: next(given))
    given = iter([4.0, 3.5, 2.25])  # fisher and fisher_summed remove the same
    found = Sharing(Budget(density=0.3), "global", batches).decision(model, paths, {})
    assert found.compared == {"fisher": 4.0, "fisher_summed": 4.0, "fisher_units": 3.5, "uniform": 2.25}
    assert found.gave_way and found.note == fallback_note(3.5, 2.25)


def test_progress_is_shown_of_what_is_measured(case):
    model, batches, paths = case
    shown = []
    sharing = Sharing(Budget(density=0.3), "measured", batches)
    sharing.decision(model, paths, {}, lambda items: (shown.append(list(items)), items)[1])
    assert shown == [list(paths)]


@pytest.mark.parametrize(("answer", "distance"), [("logits", "kl"), ("pair", "relative"), ("column", "relative")])
def test_the_distance_is_what_fits_the_outputs(answer, distance):
    made = {
        "logits": lambda self, x: self.layer(x),
        "pair": lambda self, x: (self.layer(x), x),
        "column": lambda self, x: self.layer(x)[:, :1],
    }
    model = net(made[answer], layer=nn.Linear(16, 4)).train()
    assert outputs_distance(model, CalibrationBatches(list(X.split(64)))) == distance
    assert model.training
