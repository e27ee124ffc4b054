"""Stages against single calls made by hand: one after the other, each from what the one before left."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from helpers.interrupted import interrupted
from helpers.networks import X, conv, mlp
from lobs.allocation.budget import Budget
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import prunable_layers
from lobs.schedule.stages import STAGES, stage_budgets
from lobs.solvers import make
from lobs.solvers.magnitude import Magnitude

BATCHES = list(X.split(64))
IMAGES = list(torch.randn(120, 1, 4, 4, generator=torch.Generator().manual_seed(4)).split(40))
# All but whole units and what needs labels; name -> options
METHODS = {name: {} for name in lobs.methods() if name not in ("apoz", "obd")}
METHODS["net_trim"] = {"iterations": 10, "bisections": 2}
STAGED = {"density": 0.1, "stages": 3, "batches": BATCHES}


def same(one, other):
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())
    assert all(torch.equal(one.masks[name], mask) for name, mask in other.masks.items())
    assert [replace(r, seconds=0) for r in one.layers] == [replace(r, seconds=0) for r in other.layers]
    assert (one.shared_by, one.distance, one.compared_allocations, one.stages, one.notes) == (
        other.shared_by,
        other.distance,
        other.compared_allocations,
        other.stages,
        other.notes,
    )


@pytest.mark.parametrize(
    ("stages", "shares"),
    [
        (1, [0.1]),
        (2, [0.2, 0.1]),
        (3, [0.4, 0.2, 0.1]),
        (6, [0.8, 0.4, 0.2, 0.1]),
        ([0.5], [0.5, 0.1]),
        ((0.7, 0.3), [0.7, 0.3, 0.1]),
        ([], [0.1]),
    ],
)
@pytest.mark.parametrize("kind", ["density", "flops"])
def test_budgets_fall_to_the_one_that_was_asked_for(kind, stages, shares):
    budget = Budget(**{kind: 0.1}, limits={"0": (0.0, 0.9)})
    found = stage_budgets(budget, stages)
    assert [getattr(each, kind) for each in found] == pytest.approx(shares)
    assert found[-1] is budget
    assert all(each == replace(budget, **{kind: getattr(each, kind)}) for each in found)


def test_a_loose_budget_has_one_stage():
    assert stage_budgets(Budget(density=0.6), STAGES) == [Budget(density=0.6)]
    for budget in (Budget(tolerance=0.1), Budget(size=1000), Budget(densities={"0": 0.5})):
        assert stage_budgets(budget, 1) == [budget]


@pytest.mark.parametrize(
    ("budget", "stages", "kind", "message"),
    [
        (Budget(density=0.1), 0, ValueError, "stages must be at least 1, got 0"),
        (Budget(density=0.1), -3, ValueError, "stages must be at least 1, got -3"),
        (Budget(density=0.1), [0.1], ValueError, r"stages must fall from below 1 to above density=0.1, got \[0.1\]"),
        (Budget(density=0.1), [0.3, 0.5], ValueError, "stages must fall from below 1"),
        (Budget(density=0.1), [1.0, 0.5], ValueError, "stages must fall from below 1"),
        (Budget(flops=0.1), [0.5, float("nan")], ValueError, "stages must fall .* above flops=0.1"),
        (Budget(tolerance=0.1), 2, ValueError, "stages=2 go with density or flops, got tolerance=0.1"),
        (Budget(size=1000), [0.5], ValueError, r"stages=\[0.5\] go with density or flops, got size"),
        (Budget(densities={"0": 0.1}), 3, ValueError, "stages=3 go with density or flops"),
        (Budget(density=0.1), True, TypeError, "stages must be how many, or the shares kept .* got True"),
        (Budget(density=0.1), 0.5, TypeError, "stages must be how many, or the shares kept .* got 0.5"),
        (Budget(density=0.1), "3", TypeError, "stages must be how many, or the shares kept .* got '3'"),
        (Budget(density=0.1), None, TypeError, "stages must be how many, or the shares kept .* got None"),
        (Budget(density=0.1), ["0.5"], TypeError, "stages must be numbers"),
    ],
)
def test_stages_that_make_no_sense(budget, stages, kind, message):
    with pytest.raises(kind, match=message):
        stage_budgets(budget, stages)


# Every method once, some with every allocation.
WAYS = [(method, "relative") for method in METHODS]
WAYS += [(method, allocation) for method in ("lobs", "exact_obs") for allocation in ("uniform", "fisher_units")]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("method", "allocation"), WAYS)
def test_every_stage_is_a_call_of_its_own_on_what_the_one_before_left(method, sequential, allocation):
    solver, model = make(method, **METHODS[method]), mlp()
    options = {"method": solver, "allocation": allocation, "keep_samples": 30}
    result = lobs.prune(model, density=0.1, stages=[0.4, 0.2], batches=BATCHES, sequential=sequential, **options)
    assert result.stages == [str(Budget(density=share)) for share in (0.4, 0.2, 0.1)]
    assert result.density == pytest.approx(0.1, abs=2e-3)
    assert result.density <= 0.1
    step, masks = model, {}
    # In sequence later stages' targets are the dense network's outputs, which no call of its own has.
    for density in (0.4,) if sequential else (0.4, 0.2, 0.1):
        done = lobs.prune(step, density=density, batches=BATCHES, sequential=sequential, **options)
        step, masks = done.model, done.masks
    assert not any((result.masks[name] & ~mask).any() for name, mask in masks.items()), "a weight came back"
    if sequential:
        return
    for key, value in result.model.state_dict().items():
        torch.testing.assert_close(step.state_dict()[key], value)
    assert all(torch.equal(result.masks[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("sequential", [False, True])
def test_errors_are_those_against_the_dense_network(sequential):
    model = mlp()
    statistics = lobs.collect_statistics(model, BATCHES)
    result = lobs.prune(model, statistics, "exact_obs", sequential=sequential, **STAGED)
    bound = lobs.error_bound(model, result.model, statistics)
    given, wanted = X, X
    for record in result.layers:
        index = int(record.name)
        with torch.no_grad():
            dense, pruned = model[index](wanted), result.model[index](given if sequential else wanted)
            error = float((pruned - dense).square().sum(1).mean())
            power = float(dense.square().sum(1).mean())
            wanted, given = model[: index + 2](X), result.model[: index + 2](X)
        assert record.error == pytest.approx(error, rel=1e-3)
        assert record.relative_error == pytest.approx(error / power, rel=1e-3)
        assert record.bound_contribution == pytest.approx(bound.layers[record.name])


def test_a_stage_repairs_in_sequence_what_the_stages_before_it_broke():
    """The targets of every stage are the dense network's outputs: the layer is least squares on its mask to them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    inputs = X.double()
    options = {"method": "exact_obs", "density": 0.2, "batches": [inputs], "sequential": True}
    result = lobs.prune(model, stages=[0.5], **options)
    with torch.no_grad():
        hidden = torch.relu(result.model[0](inputs))
        design = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        for unit, kept in enumerate(result.masks["2"]):
            columns = torch.cat([kept, torch.ones(1, dtype=torch.bool)])
            best = torch.linalg.lstsq(design[:, columns], model(inputs)[:, unit : unit + 1]).solution[:, 0]
            found = torch.cat([result.model[2].weight[unit], result.model[2].bias[unit : unit + 1]])[columns]
            torch.testing.assert_close(found, best, rtol=0.1, atol=0.02)  # its damping aside


@pytest.mark.parametrize("sequential", [False, True])
def test_flops_are_spent_in_stages_too(sequential):
    model = conv()
    options = {"method": "exact_obs", "allocation": "relative", "batches": IMAGES, "sequential": sequential}
    result = lobs.prune(model, flops=0.2, stages=[0.6], **options)
    positions = {"0": 4, "3": 1}
    spent = sum(record.kept * positions[record.name] for record in result.layers)
    whole = sum((record.kept + record.removed) * positions[record.name] for record in result.layers)
    assert 0.2 * whole - 4 < spent <= 0.2 * whole
    assert result.stages == [str(Budget(flops=0.6)), str(Budget(flops=0.2))]
    assert "in stages: " in repr(result)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_an_interrupted_call_goes_on_in_the_stage_where_it_stopped(tmp_path, sequential, allocation):
    model = mlp()
    options = {"method": "exact_obs", "sequential": sequential, "allocation": allocation, **STAGED}
    expected = lobs.prune(model, **options)

    for stop in (2, 5, 8):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            lobs.prune(model, folder=folder, progress=interrupted(stop), **options)
        same(lobs.prune(model, folder=folder, **options), expected)
        same(lobs.prune(model, folder=folder, **options), expected)


def test_finished_stages_are_read_from_their_folder(tmp_path, monkeypatch):
    options = {"method": "exact_obs", "sequential": True, "allocation": "global", "folder": tmp_path, **STAGED}
    first = lobs.prune(mlp(), **options)
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} >= {"stage1", "stage2", "stage3"}
    monkeypatch.setattr("lobs.solvers.exact_obs.ExactOBS.path", None)
    same(lobs.prune(mlp(), **options), first)
    with pytest.raises(ValueError, match="holds parts of another call: stages differ"):
        lobs.prune(mlp(), **{**options, "stages": 2})


def test_one_stage_is_none():
    plain = lobs.prune(mlp(), method="exact_obs", density=0.1, batches=BATCHES)
    same(lobs.prune(mlp(), method="exact_obs", density=0.1, batches=BATCHES, stages=1), plain)
    assert plain.stages == []
    assert "in stages" not in repr(plain)


def test_the_callers_network_and_given_paths_are_the_first_stages():
    model = mlp()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, BATCHES), "exact_obs")
    expected = lobs.prune(model, method="exact_obs", **STAGED)
    same(lobs.prune(model, method="exact_obs", paths=paths, **STAGED), expected)
    same(lobs.plan(model, None, "exact_obs", batches=BATCHES).prune(density=0.1, stages=3), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    same(lobs.prune(model, method="exact_obs", in_place=True, **STAGED), expected)
    assert all(torch.equal(value, expected.model.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_correction_comes_after_the_last_stage():
    plain = lobs.prune(mlp(), method="magnitude", **STAGED)
    corrected = lobs.prune(mlp(), method="magnitude", correct="bias", **STAGED)
    assert corrected.correction == "bias"
    for name in plain.masks:
        assert torch.equal(corrected.model.get_submodule(name).weight, plain.model.get_submodule(name).weight)
        assert torch.equal(corrected.uncorrected[f"{name}.bias"], plain.model.get_submodule(name).bias)


def test_whole_units_leave_in_stages():
    result = lobs.prune(mlp(), method="apoz", density=0.3, stages=[0.6], batches=BATCHES)
    first = lobs.prune(mlp(), method="apoz", density=0.6, batches=BATCHES)
    assert result.density <= 0.3
    for name, mask in first.masks.items():
        assert not (result.masks[name] & ~mask).any()
    for layer in (0, 2):
        dead = ~result.masks[str(layer)].any(1)
        assert not result.model[layer].bias[dead].any()


def test_what_stages_need_is_said():
    model = mlp()
    statistics = lobs.collect_statistics(model, BATCHES)
    with pytest.raises(ValueError, match="stages=2 needs batches="):
        lobs.prune(model, statistics, "exact_obs", density=0.1, stages=2)
    with pytest.raises(ValueError, match="stages=2 reads batches several times"):
        lobs.prune(model, statistics, "exact_obs", density=0.1, stages=2, batches=iter(BATCHES))
    labelled = lobs.collect_statistics(model, BATCHES)
    with pytest.raises(ValueError, match="stages=2 measure the network anew without labels, and OBD needs the loss's"):
        lobs.prune(model, labelled, "obd", density=0.1, stages=2, batches=BATCHES)


def test_samples_are_kept_for_all_stages():
    statistics = lobs.collect_statistics(mlp(), BATCHES, keep_samples=17)
    assert statistics["0"].kept_samples == 17
    assert lobs.collect_statistics(mlp(), BATCHES)["0"].kept_samples == 0
    solver = make("net_trim", iterations=5, bisections=2)
    result = lobs.prune(mlp(), statistics, solver, **STAGED)
    assert result.density == pytest.approx(0.1, abs=2e-3)
    layers = prunable_layers(result.model)
    assert all(weight_matrix(layer).isfinite().all() for layer in layers.values())


def test_more_stages_than_there_are_looser_budgets_are_those_that_there_are():
    assert stage_budgets(Budget(density=0.2), 5000) == stage_budgets(Budget(density=0.2), 3)
    assert [budget.density for budget in stage_budgets(Budget(density=0.1), 4)] == [0.8, 0.4, 0.2, 0.1]


def test_the_first_of_several_stages_keeps_less_than_everything():
    for density, shares in ((0.5, [0.5]), (0.25, [0.5, 0.25]), (0.49, [0.98, 0.49]), (0.0, [0.0])):
        assert [budget.density for budget in stage_budgets(Budget(density=density), 3)] == shares
    assert [budget.density for budget in stage_budgets(Budget(density=0.1), [0.999])] == [0.999, 0.1]
    assert [budget.density for budget in stage_budgets(Budget(density=0.0), [0.5, 0.1])] == [0.5, 0.1, 0.0]
    for shares in ([1], [0.5, 0.5], [0.1]):
        with pytest.raises(ValueError, match=r"stages must fall from below 1 to above density=0.1"):
            stage_budgets(Budget(density=0.1), shares)


def test_notes_of_every_stage_say_at_which_budget():
    result = lobs.prune(mlp(), method=Noting(), density=0.2, stages=[0.5], batches=BATCHES, allocation="uniform")
    expected = [f"at density={share}: layer '{name}': roughly" for share in (0.5, 0.2) for name in (0, 2, 4)]
    assert result.notes == expected


class Noting(Magnitude):
    """Its paths have a note."""

    def path(self, weight, statistics):
        path = super().path(weight, statistics)
        path.note = "roughly"
        return path


def test_a_layer_without_outputs_has_lost_nothing_after_stages():
    model = mlp()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    result = lobs.prune(model, method="magnitude", densities=None, density=0.2, stages=[0.5], batches=BATCHES)
    record = next(record for record in result.layers if record.name == "2")
    assert (record.error, record.relative_error) == (0.0, 0.0)
