"""How a network's budget is shared out: every allocation meets every budget, and says what it needs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget, problem
from lobs.allocation.loss_curves import loss_curves
from lobs.registry import ALLOCATIONS
from lobs.solvers import make


def make_paths(seed, method="exact_obs", shapes=((3, 4), (2, 3), (4, 2))):
    torch.manual_seed(seed)
    paths = {}
    for index, (out, features) in enumerate(shapes):
        samples = torch.randn(60, features, dtype=torch.float64) @ torch.randn(features, features, dtype=torch.float64)
        scale = 10.0 ** torch.randint(-3, 4, (1,))
        statistics = lobs.LayerStatistics.from_samples(samples * scale)
        paths[f"layer{index}"] = make(method)(torch.randn(out, features, dtype=torch.float64), statistics)
    return paths


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), density=st.floats(0, 1), method=st.sampled_from(["exact_obs", "magnitude"]))
def test_counts_add_up_to_the_budget(seed, density, method):
    paths = make_paths(seed, method)
    removable = sum(path.removable for path in paths.values())
    if density > 0 and int(density * removable + 1e-9) < len(paths):
        with pytest.raises(ValueError, match=r"one weight per layer .* more than the budget density="):
            allocate(paths, density, "global")
        return
    counts = allocate(paths, density, "global")
    assert not density or all(counts[name] < path.removable for name, path in paths.items())
    kept = removable - sum(counts.values())
    assert kept <= density * removable + 1e-9 < kept + 1
    assert all(0 <= counts[name] <= path.total for name, path in paths.items())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    allocation=st.sampled_from([name for name in ALLOCATIONS if name != "measured_joint"]),
    kind=st.sampled_from(["density", "flops", "size"]),
    share=st.floats(0.1, 1),
    limited=st.booleans(),
)
def test_every_allocation_respects_budget_and_limits(seed, allocation, kind, share, limited):
    paths = make_paths(seed)
    limits = {"layer0": (0.1, 0.5), "layer[01]": (0.25, 1.0), "layer2": (1.0, 1.0)} if limited else None
    curves = {name: path.curve_points() for name, path in paths.items()}
    budget = Budget(**{kind: int(100 + 140 * share) if kind == "size" else 0.5 + share / 2}, limits=limits)
    counts = allocate(paths, budget, allocation, losses=curves)
    task = problem(paths, budget)
    assert task.cost(counts) <= task.bound
    for name, (fewest, most) in task.ranges.items():
        assert fewest <= counts[name] <= most
    if allocation != "uniform":
        for name, (fewest, _) in task.ranges.items():
            more = {**counts, name: counts[name] - 1}
            assert counts[name] == fewest or task.cost(more) > task.bound, "one more weight would fit"


def test_limits_change_only_what_they_have_to():
    paths = make_paths(3)
    free = allocate(paths, 0.4, "relative")
    wide = dict.fromkeys(paths, (0.0, 1.0))
    assert allocate(paths, Budget(density=0.4, limits=wide), "relative") == free
    kept = {name: path.removable - free[name] for name, path in paths.items()}
    name = min(paths, key=lambda name: kept[name] / paths[name].removable)
    least = (kept[name] + 2) / paths[name].removable
    limited = allocate(paths, Budget(density=0.4, limits={name: (least, 1.0)}), "relative")
    assert paths[name].removable - limited[name] == kept[name] + 2
    assert sum(limited.values()) == sum(free.values())


def test_excluding_a_layer_leaves_it_alone():
    paths = make_paths(5)
    for allocation in ("uniform", "global"):
        counts = allocate(paths, Budget(density=0.6, limits={"*2": (1.0, 1.0)}), allocation)
        assert counts["layer2"] == 0
        assert sum(path.removable - counts[name] for name, path in paths.items()) <= 0.6 * 26


def test_uniform_keeps_the_same_density_whatever_the_budget():
    paths = make_paths(1, shapes=((20, 30), (10, 20), (15, 10)))
    counts = allocate(paths, Budget(flops=0.3), "uniform")
    kept = [1 - counts[name] / path.removable for name, path in paths.items()]
    assert all(share == pytest.approx(0.3, abs=0.01) for share in kept)
    assert allocate(paths, Budget(density=0.3), "uniform") == allocate(paths, 0.3) == allocate(paths, 0.3, "uniform")


def test_global_beats_uniform_on_a_network_with_an_easy_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    inputs = torch.randn(400, 4) @ torch.randn(4, 30)  # of rank 4: most of the first layer is redundant
    statistics = lobs.collect_statistics(model, [inputs])
    errors = {}
    for allocation in ("uniform", "global"):
        result = lobs.prune(model, statistics, "exact_obs", density=0.3, allocation=allocation)
        assert result.density <= 0.3
        with torch.no_grad():
            errors[allocation] = float((result.model(inputs) - model(inputs)).square().mean())
    assert errors["global"] < 0.5 * errors["uniform"]


@pytest.mark.parametrize("method", ["magnitude", "lobs", "exact_obs"])
def test_a_network_that_is_pruned_already_loses_its_zeros_first(method):
    """Rounds of pruning are nested whatever the allocation: removing a weight that is zero costs nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    inputs = torch.randn(300, 40)
    statistics = lobs.collect_statistics(model, [inputs])
    first = lobs.prune(model, statistics, method, density=0.313, allocation="global")
    again = lobs.collect_statistics(first.model, [inputs])
    second = lobs.prune(first.model, again, method, density=0.3, allocation="global")
    for name, mask in second.masks.items():
        assert not (mask & ~first.masks[name]).any()


@pytest.mark.parametrize("allocation", [name for name in ALLOCATIONS if name != "uniform"])
def test_every_allocation_works_from_model_and_batches(allocation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5))
    batches = [(torch.randn(40, 1, 6, 6), None) for _ in range(2)]
    before = copy.deepcopy(model.state_dict())
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "exact_obs")
    counts = allocate(paths, 0.2, allocation, model=model, batches=iter(batches))
    removable = sum(path.removable for path in paths.values())
    assert removable - sum(counts.values()) == int(0.2 * removable)
    assert list(counts) == list(paths)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    if allocation not in ("measured_joint", "global"):
        curves = loss_curves(paths, allocation, model=model, batches=batches)
        again = allocate(paths, 0.2, allocation, losses=dict(reversed(curves.items())))
        assert again == counts


def test_what_is_missing_or_wrong_is_named():
    paths = make_paths(0)
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"density is the share .* got 1.5"):
        allocate(paths, 1.5, "global")
    with pytest.raises(ValueError, match="unknown allocation 'even': accepted are uniform, global"):
        allocate(paths, 0.5, "even")
    for allocation in ("theorem", "fisher", "measured", "measured_joint"):
        with pytest.raises(ValueError, match=f"{allocation}' needs the dense network: give model="):
            allocate(paths, 0.5, allocation)
        if allocation != "theorem":
            with pytest.raises(ValueError, match=f"{allocation}' needs calibration images: give batches="):
                allocate(paths, 0.5, allocation, model=model)
    curves = {name: path.curve_points() for name, path in paths.items()}
    with pytest.raises(ValueError, match="'measured_joint' measures pruned networks: give model= and batches="):
        allocate(paths, 0.5, "measured_joint", losses=curves)
    with pytest.raises(ValueError, match="exactly the layers layer0, layer1, layer2; got those of layer0"):
        allocate(paths, 0.5, "fisher", losses={"layer0": curves["layer0"]})
    short = {**curves, "layer1": (curves["layer1"][0][:-1], curves["layer1"][1][:-1])}
    with pytest.raises(ValueError, match=r"layer 'layer1': losses must go from 0 to the path's 6 .* from 0 to 5"):
        allocate(paths, 0.5, "fisher", losses=short)
    infinite = {**curves, "layer1": (curves["layer1"][0], curves["layer1"][1] / 0)}
    with pytest.raises(ValueError, match="layer 'layer1': its losses hold NaN or infinite values"):
        allocate(paths, 0.5, "fisher", losses=infinite)


def test_patterns_that_keep_more_than_the_budget_are_named():
    paths = make_paths(0, shapes=((3, 4), (2, 8)))
    halves = {name: make("magnitude", pattern="2:4")(path.weight, path.statistics) for name, path in paths.items()}
    with pytest.raises(
        ValueError, match=r"the ends of the layers' paths .* keep 0.5, more than the budget density=0.4"
    ):
        allocate(halves, 0.4, "global")
    assert allocate(halves, 0.5, "global") == {"layer0": 6, "layer1": 8}


def test_densities_name_every_layer_and_no_other():
    paths = make_paths(0)
    with pytest.raises(ValueError, match="layers layer0, layer1, layer2; unknown: head; missing: layer1"):
        allocate(paths, Budget(densities={"layer0": 0.5, "layer2": 0.5, "head": 1.0}))
    with pytest.raises(ValueError, match=r"layer2; missing: layer1, layer2 \(layers=\[...\] leaves them dense\)"):
        allocate(paths, Budget(densities={"layer0": 0.5}))
