"""How a budget is shared out: exact totals, and the best sum of relative errors that hull points allow."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.allocation import _lower_hull, allocate, equal_slopes
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
    counts = allocate(paths, density, "global")
    removable = sum(path.removable for path in paths.values())
    kept = removable - sum(counts.values())
    assert kept <= density * removable + 1e-9 < kept + 1
    assert all(0 <= counts[name] <= path.total for name, path in paths.items())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_no_other_split_of_the_hulls_is_better(seed, share):
    paths = make_paths(seed)
    count = round(share * sum(path.total for path in paths.values()))
    hulls = {}
    for name, path in paths.items():
        errors = path.layer_error() / path.layer_error(path.total)
        points = _lower_hull(list(range(path.total + 1)), errors.tolist())
        at, values = zip(*points, strict=True)
        whole = torch.arange(path.total + 1, dtype=torch.float64)
        index = torch.searchsorted(torch.tensor(at, dtype=torch.float64), whole).clamp_min(1)
        left, right = torch.tensor(at)[index - 1], torch.tensor(at)[index]
        values = torch.tensor(values, dtype=torch.float64)
        low, high = values[index - 1], values[index]
        hulls[name] = low + (high - low) * (whole - left) / (right - left)
        assert (hulls[name] <= errors + 1e-12).all()
        assert (hulls[name].diff().diff() >= -1e-12).all(), "a hull is convex"
    chosen = equal_slopes(paths, count)
    ours = sum(float(hulls[name][chosen[name]]) for name in paths)
    best = min(
        sum(float(hulls[name][c]) for name, c in zip(paths, split, strict=True))
        for split in product(*(range(path.total + 1) for path in paths.values()))
        if sum(split) == count
    )
    assert ours == pytest.approx(best, abs=1e-9)


def test_the_scale_of_a_layer_does_not_matter():
    """Twice the inputs, a fourth of the weights' squares: the same network, so the same split."""
    torch.manual_seed(0)
    samples = torch.randn(50, 6, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64)
    plain = make("exact_obs")(weight, lobs.LayerStatistics.from_samples(samples))
    scaled = make("exact_obs")(weight, lobs.LayerStatistics.from_samples(1000 * samples))
    counts = equal_slopes({"plain": plain, "scaled": scaled}, 24)
    assert abs(counts["plain"] - counts["scaled"]) <= 1


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


def test_budgets_out_of_reach_are_named():
    paths = make_paths(0)
    with pytest.raises(ValueError, match=r"27 weights cannot leave: the layers' paths end after 26"):
        equal_slopes(paths, 27)
    with pytest.raises(ValueError, match=r"density is the share .* got 1.5"):
        allocate(paths, 1.5, "global")
