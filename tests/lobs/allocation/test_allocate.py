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
from lobs.allocation.knapsack import dynamic_program, equal_slopes
from lobs.allocation.loss_curves import loss_curves
from lobs.allocation.output_distance import along_errors
from lobs.export.sparse import file_costs
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


def test_global_looks_at_the_network_where_it_has_both_network_and_inputs_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    batches = [torch.randn(60, 6)]
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "magnitude")
    relative = allocate(paths, 0.3, "relative")
    fisher = allocate(paths, 0.3, "fisher", model=model, batches=batches)
    assert relative != fisher
    assert allocate(paths, 0.3, "global", model=model, batches=batches) == fisher
    assert allocate(paths, 0.3, "global", model=model) == relative
    assert allocate(paths, 0.3, "global", batches=batches) == relative


def test_a_tolerance_is_each_layers_own_and_leaves_it_one_weight():
    paths = make_paths(2)
    for rule in ("error", "sensitivity"):
        for tolerance in (0.0, 0.01, 1.0, 100.0, 1e9):
            counts = allocate(paths, Budget(tolerance=tolerance, tolerance_rule=rule))
            for name, path in paths.items():
                assert counts[name] == min(path.within(tolerance, rule), path.removable - 1)
        assert counts == {"layer0": 11, "layer1": 5, "layer2": 7}
    assert any(
        path.within(10.0**k) != path.within(10.0**k, "sensitivity") for path in paths.values() for k in (-2, 0, 2)
    )


def test_nothing_may_be_left_where_a_density_of_nothing_is_asked_for():
    paths = make_paths(4)
    everything = {name: path.removable for name, path in paths.items()}
    assert allocate(paths, 0.0) == allocate(paths, 0, "relative") == everything
    assert allocate(paths, Budget(flops=0.0)) == everything
    assert allocate(paths, Budget(densities=dict.fromkeys(paths, 0.0))) == everything


def test_a_layer_that_would_lose_all_keeps_a_weight_at_the_others_cost():
    paths = make_paths(1, shapes=((2, 2), (10, 20)))
    # A tenth of four weights is none: the layer keeps one, and of the 20 weights of both 19 are left to the other.
    counts = allocate(paths, 0.1)
    assert counts == {"layer0": 3, "layer1": 181}
    alone = {"layer0": paths["layer0"]}
    assert allocate(alone, 0.1) == {"layer0": 3}
    assert allocate(paths, 0.5) == {"layer0": 2, "layer1": 100}


def test_uniform_takes_the_largest_density_that_fits_between_the_limits():
    paths = make_paths(1, method="magnitude", shapes=((20, 30), (10, 20), (15, 10)))
    counts = allocate(paths, Budget(density=0.4, limits={"layer0": (0.5, 1.0)}), "uniform")
    # 300 of 600 weights stay, 80 are left for the two others: 46 of 200 and 34 of 150 are a density of 0.23 in both.
    assert counts == {"layer0": 300, "layer1": 154, "layer2": 116}
    most = allocate(paths, Budget(density=0.4, limits={"layer0": (0.0, 0.1)}), "uniform")
    # 60 of 600 stay, so that 320 are left: 183 of 200 and 137 of 150, a density of 0.915.
    kept = {name: path.removable - most[name] for name, path in paths.items()}
    assert kept == {"layer0": 60, "layer1": 183, "layer2": 137}
    assert allocate(paths, Budget(density=1.0, limits={"*": (0.0, 0.5)}), "uniform") == {
        "layer0": 300,
        "layer1": 100,
        "layer2": 75,
    }
    assert allocate(paths, Budget(flops=1.0), "uniform") == dict.fromkeys(paths, 0)


def test_bytes_of_a_file_are_counted_where_the_network_is_known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10)).eval()
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [torch.randn(50, 30)]), "magnitude")
    budget, file = Budget(size=2500), file_costs(model, list(paths))
    for allocation in ("uniform", "relative"):
        task = problem(paths, budget, file)
        counts = allocate(paths, budget, allocation, model=model)
        assert task.bound - 60 < task.cost(counts) <= task.bound
        assert problem(paths, budget).cost(allocate(paths, budget, allocation)) > task.cost(counts) + 1000


def test_measured_losses_are_carried_along_the_errors_and_shared_out_point_by_point():
    paths = make_paths(6)
    coarse = {}
    for name, path in paths.items():
        knots = torch.tensor([0, path.total // 2, path.total])
        coarse[name] = knots, path.layer_error()[knots] ** 1.5
    task = problem(paths, Budget(density=0.4))
    dense = {name: along_errors(curve, paths[name]) for name, curve in coarse.items()}
    assert allocate(paths, 0.4, "measured", losses=coarse) == dynamic_program(dense, task)
    assert allocate(paths, 0.4, "fisher", losses=coarse) == equal_slopes(coarse, task)


def test_curves_that_begin_later_or_have_other_numbers_of_losses_are_named():
    paths = make_paths(0)
    curves = {name: path.curve_points() for name, path in paths.items()}
    counts, losses = curves["layer1"]
    for wrong, said in (
        ((counts[1:], losses[1:]), "got 6 losses from 1 to 6"),
        ((counts, losses[:-1]), "got 6 losses"),
    ):
        with pytest.raises(
            ValueError, match=f"layer 'layer1': losses must go from 0 to the path's 6 removals, .*{said}"
        ):
            allocate(paths, 0.5, "fisher", losses={**curves, "layer1": wrong})
    holes = (counts, torch.where(counts == 3, torch.nan, losses))
    with pytest.raises(ValueError, match="layer 'layer1': its losses hold NaN"):
        allocate(paths, 0.5, "fisher", losses={**curves, "layer1": holes})
    with pytest.raises(ValueError, match=r"layers layer0, layer1, layer2; got those of layer0, layer1, layer2, head"):
        allocate(paths, 0.5, "fisher", losses={**curves, "head": holes})


def test_a_density_that_a_layer_cannot_have_names_the_layer():
    paths = make_paths(0)
    with pytest.raises(
        ValueError, match="layer 'layer1': density is the share of weights kept, between 0 and 1; got 2"
    ):
        allocate(paths, Budget(densities={"layer0": 0.5, "layer1": 2.0, "layer2": 0.5}))
    halves = make("magnitude", pattern="2:4")(paths["layer0"].weight, paths["layer0"].statistics)
    with pytest.raises(ValueError, match=r"layer 'layer0': density 0.4 is below the 0.5 that this path's pattern ends"):
        allocate({"layer0": halves}, 0.4)
