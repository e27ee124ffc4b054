"""Budgets and limits in numbers: what a layer costs, which counts are allowed, what cannot be met."""

import pytest
import torch
from torch import nn

import lobs
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget, count_ranges, problem


@pytest.fixture(scope="module")
def paths():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(2, 5, 3, bias=False))
    model.add_module("relu", nn.ReLU())
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(80, 6))
    return lobs.layer_paths(model, lobs.collect_statistics(model, [torch.randn(50, 2, 6, 6)]), "magnitude")


def test_a_convolution_costs_a_multiply_add_per_position(paths):
    task = problem(paths, Budget(flops=0.25))
    assert task.cost({"conv": 0, "head": 0}) == 90 * 16 + 480
    assert task.cost({"conv": 80, "head": 470}) == 10 * 16 + 10
    assert task.bound == pytest.approx(0.25 * (90 * 16 + 480))
    weights = problem(paths, Budget(density=0.25))
    assert weights.cost({"conv": 80, "head": 470}) == 20
    assert weights.bound == int(0.25 * 570)


def test_a_budget_of_bytes_counts_weights_and_biases(paths):
    task = problem(paths, Budget(size=700))
    # 90 weights in a convolution without bias, 480 in a layer with 6 biases
    assert task.cost({"conv": 0, "head": 380}) == 4 * 90 + (60 + 4 * 100) + 6 * 4
    assert task.cost({"conv": 90, "head": 475}) == 0 + (4 + 5 * 5) + 6 * 4


@pytest.mark.parametrize("size", [35, 36, 100, 333, 700, 1500, 2376])
def test_a_budget_of_bytes_is_used_up(paths, size):
    counts = allocate(paths, Budget(size=size), "relative")
    spent = problem(paths, Budget(size=size)).cost(counts)
    assert spent <= size
    assert size - spent < 8 or not any(counts.values())
    assert all(counts[name] < path.removable for name, path in paths.items())


def test_fewer_operations_means_fewer_weights_where_they_are_used_most(paths):
    weights = allocate(paths, Budget(density=0.5), "relative")
    operations = allocate(paths, Budget(flops=0.5), "relative")
    assert operations["conv"] > weights["conv"]
    assert operations["head"] < weights["head"]


def test_the_first_pattern_that_fits_counts(paths):
    assert count_ranges(paths, {}) == {"conv": (0, 90), "head": (0, 480)}
    assert count_ranges(paths, {"conv": (0.1, 0.5), "*": (0.25, 1.0)}) == {"conv": (45, 81), "head": (0, 360)}
    assert count_ranges(paths, {"*": (0.25, 1.0), "conv": (0.1, 0.5)}) == {"conv": (0, 67), "head": (0, 360)}
    assert count_ranges(paths, {"c*": (1.0, 1.0)})["conv"] == (0, 0)
    # No whole number of 90 weights is 1%: at least that share is kept.
    assert count_ranges(paths, {"conv": (0.01, 0.01)})["conv"] == (89, 89)


def test_wrong_limits_are_named(paths):
    with pytest.raises(ValueError, match="no layer fits 'fc' of the limits; there are conv, head"):
        count_ranges(paths, {"fc": (0.0, 1.0)})
    for limit in ((0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.5,)):
        with pytest.raises(ValueError, match=r"limits of 'conv' must be \(least, most\) with 0 <= least <= most <= 1"):
            count_ranges(paths, {"conv": limit})
    halves = lobs.solvers.make("magnitude", pattern="2:4")(paths["head"].weight, paths["head"].statistics)
    with pytest.raises(ValueError, match=r"layer 'head': at most 0.3 of it may be kept, but its path ends at 0.5"):
        count_ranges({"head": halves}, {"head": (0.0, 0.3)})


def test_limits_that_keep_more_than_the_budget_say_how_much(paths):
    limits = {"head": (0.5, 1.0), "conv": (0.2, 1.0)}
    with pytest.raises(ValueError, match=r"limits alone keep 0.4526, more than the budget density=0.4"):
        problem(paths, Budget(density=0.4, limits=limits))
    with pytest.raises(ValueError, match=r"limits alone keep 0.275, more than the budget flops=0.2"):
        problem(paths, Budget(flops=0.2, limits=limits))
    with pytest.raises(ValueError, match=r"limits alone keep 1128 bytes, more than the budget size=1000"):
        problem(paths, Budget(size=1000, limits=limits))
    with pytest.raises(ValueError, match=r"one weight per layer .* keep 35 bytes, .* size=34"):
        problem(paths, Budget(size=34))
    assert problem(paths, Budget(density=0.4527, limits=limits)).bound == 258


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of density, tolerance, densities, flops, size; got none"),
        ({"density": 0.1, "size": 10}, "got density=0.1 and size=10"),
        ({"density": 1.1}, "density is the share of weights kept, between 0 and 1; got 1.1"),
        ({"density": float("nan")}, "density is .* got nan"),
        ({"flops": -0.1}, "flops is the share of multiply-adds kept, between 0 and 1; got -0.1"),
        ({"size": -1}, "size is the bytes of the sparse file, at least 0; got -1"),
    ],
)
def test_wrong_budgets_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)
