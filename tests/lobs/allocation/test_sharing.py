"""How a budget is shared out, and whether measuring has helped."""

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation import sharing as sharing_module
from lobs.allocation.budget import Budget
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, Sharing, shared_losses, solved
from lobs.allocation.unit_budget import unit_counts
from lobs.calibration.batches import CalibrationBatches
from lobs.layers.consumers import consumers_of
from lobs.layers.network import prunable_layers
from lobs.solvers.recomputed import RecomputedPath


def test_the_fallback_is_said(monkeypatch):
    """Shares that are worse than uniform ones give way to them."""
    model, options = mlp(), {"batches": list(X.split(64)), "method": "magnitude", "density": 0.3}
    worst = {"0": 511, "2": 300, "4": 0}
    kept = lobs.allocation.sharing.Sharing._shared

    def shared(self, model, paths, allocation, progress=None):
        return dict(worst) if allocation == "global" else kept(self, model, paths, allocation, progress)

    monkeypatch.setattr(lobs.allocation.sharing.Sharing, "_shared", shared)
    with pytest.warns(UserWarning, match="allocation='global' gave way to 'uniform'"):
        result = lobs.prune(model, allocation="global", **options)
    assert any("gave way" in note for note in result.notes)
    assert "gave way" in repr(result)
    uniform = lobs.prune(model, **options)
    assert all(torch.equal(result.masks[name], mask) for name, mask in uniform.masks.items())


@pytest.fixture
def case():
    """A network, its batches and its paths by magnitude."""
    model, batches = mlp(), CalibrationBatches(list(X.split(64)))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "magnitude")
    return model, batches, paths


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


def test_the_decision_is_the_better_one_of_global_and_uniform(case, monkeypatch):
    model, batches, paths = case
    even = Sharing(Budget(density=0.3)).decision(model, paths, {})
    assert (even.ratio, even.note, even.doubtful, even.gave_way) == (None, None, False, False)
    sharing = Sharing(Budget(density=0.3), "global", batches)
    measure = OutputDistance(model, batches)
    found = sharing.decision(model, paths, {})
    distances = [
        measure.with_weights({name: path.at(counts[name])[0] for name, path in paths.items()})
        for counts in (found.counts, even.counts)
    ]
    assert found.ratio == pytest.approx(distances[0] / distances[1])
    assert found.ratio <= 1
    assert found.doubtful == (found.ratio > 0.5)

    worst = {"0": 511, "2": 300, "4": 0}
    compared = sharing._compared(model, paths, dict(worst))
    assert compared.counts == even.counts
    assert compared.gave_way and compared.doubtful
    assert compared.note.startswith("allocation='global' gave way to 'uniform': distance of the outputs")
    assert sharing._compared(model, paths, even.counts) == Decision(even.counts, 1.0)
    assert Sharing(Budget(density=0.3), "global")._compared(model, paths, worst) == Decision(worst)
    forgotten = {name: RecomputedPath(path, lambda path=path: path) for name, path in paths.items()}
    unseen = sharing._compared(model, forgotten, worst)
    assert unseen.counts == worst
    assert "was not compared" in unseen.note and not unseen.gave_way


def test_whole_units_take_a_density_alone(case):
    model, batches, _ = case
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    links = consumers_of(prunable_layers(model))
    found = Sharing(Budget(density=0.4)).decision(model, paths, links)
    assert found == Decision(unit_counts(paths, links, 0.4))
    for budget in (Budget(flops=0.4), Budget(density=0.4, limits={"*": (0.0, 1.0)})):
        with pytest.raises(ValueError, match="removes whole units takes a density alone"):
            Sharing(budget).decision(model, paths, links)


def test_losses_are_computed_once_where_a_budget_is_shared_out_by_them(case):
    model, batches, paths = case
    assert shared_losses(model, paths, "uniform", batches) is None
    apoz = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    assert shared_losses(model, apoz, "measured", batches) is None
    losses = shared_losses(model, paths, "fisher", batches)
    assert list(losses) == list(paths)
    given = Sharing(Budget(density=0.3), "fisher", batches, losses).decision(model, paths, {})
    assert given == Sharing(Budget(density=0.3), "fisher", batches).decision(model, paths, {})


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


@pytest.mark.parametrize(
    ("allocation", "measured", "gave_way", "expected"),
    [
        ("uniform", True, False, ("uniform", None)),
        ("relative", True, False, ("relative", None)),
        ("global", False, False, ("relative", None)),
        ("global", True, False, ("measured_joint", "kl")),
        ("global", True, True, ("uniform", "kl")),
        ("fisher", True, False, ("fisher", "kl")),
    ],
)
def test_what_was_chosen_is_no_alias(case, allocation, measured, gave_way, expected):
    model, batches, _ = case
    sharing = Sharing(Budget(density=0.3), allocation, batches if measured else None)
    assert sharing.chosen(model, gave_way) == expected
