"""Budgets and limits in numbers: what a layer costs, which counts are allowed, what cannot be met."""

import pytest
import torch
from torch import nn

import lobs
from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget, budget_of, count_ranges, most_kept, problem
from lobs.export.sparse_layout import FileCosts


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tolerance": -0.1}, "tolerance must be >= 0, got -0.1"),
        ({"tolerance": float("nan")}, "tolerance must be >= 0, got nan"),
        (
            {"tolerance": 1.0, "limits": {"*": (0.0, 1.0)}},
            r"limits=\{'\*': \(0.0, 1.0\)\} go with density, flops or size",
        ),
        ({"densities": {"a": 1.0}, "limits": {"*": (0.0, 1.0)}}, "go with density, flops or size; got densities="),
        ({"tolerance": 1.0, "tolerance_rule": "mean"}, "unknown rule 'mean': accepted are error, sensitivity"),
        ({"flops": 1.01}, "flops is .* got 1.01"),
        ({"density": -0.01}, "density is .* got -0.01"),
        ({"size": -0.5}, "size is .* got -0.5"),
        ({"density": 0.5, "flops": 0.5}, "got density=0.5 and flops=0.5"),
    ],
)
def test_budgets_out_of_range_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)


def test_the_ends_of_every_range_are_inside():
    for given in ({"density": 0}, {"density": 1}, {"flops": 0.0}, {"flops": 1.0}, {"size": 0}, {"tolerance": 0}):
        assert vars(Budget(**given)).items() >= given.items()
    assert Budget(tolerance=1.0, tolerance_rule="sensitivity").divisible is False


def test_numbers_and_names_of_other_types_are_refused():
    for given in ({"density": "half"}, {"tolerance": [1]}, {"flops": True}, {"size": "1MB"}):
        (name,) = given
        with pytest.raises(TypeError, match=f"{name} must be .*, a number; got"):
            Budget(**given)
    with pytest.raises(TypeError, match="densities must map layer names to densities"):
        Budget(densities={"a": (0.1, 0.2)})
    with pytest.raises(TypeError, match=r"limits must map layer names to \(least, most\) densities"):
        Budget(density=0.5, limits={"a": 0.5})


def test_a_budget_tells_what_was_asked_for():
    budget = Budget(flops=0.5, limits={"a": (0.0, 1.0)})
    assert str(budget) == "flops=0.5"
    assert budget.asked == {"flops": 0.5, "limits": {"a": (0.0, 1.0)}, "tolerance_rule": "error"}
    assert [Budget(**{name: 1}).divisible for name in ("density", "flops", "size", "tolerance")] == [True] * 3 + [False]
    densities = Budget(densities={"a": 0.1, "b": 0.2})
    assert not densities.divisible
    assert densities.of_layer("b") == Budget(densities={"b": 0.2})
    assert budget.of_layer("b") is budget


def test_a_budget_is_given_whole_or_by_its_fields():
    assert budget_of(None, {"density": 0.5}) == budget_of(Budget(density=0.5), {}) == Budget(density=0.5)
    with pytest.raises(TypeError, match=r"budget must be a lobs.Budget, got 0.5: give its fields by name"):
        budget_of(0.5, {})
    with pytest.raises(TypeError, match=r"give a budget or its fields, got density=0.5 and size, limits"):
        budget_of(Budget(density=0.5), {"size": 3, "limits": {}})
    with pytest.raises(TypeError, match="unknown argument 'share': accepted are density, tolerance, densities, flops"):
        budget_of(None, {"share": 0.5})
    with pytest.raises(ValueError, match=r"exactly one of .* got none"):
        budget_of(None, {})


def test_most_is_kept_where_limits_say_so():
    sizes = {"conv": 90, "head": 480, "head[0]": 7}
    assert most_kept({}, sizes) == 577
    assert most_kept({"conv": (0.1, 0.5)}, sizes) == 45 + 480 + 7
    assert most_kept({"head": (0.0, 0.1), "*": (0.0, 0.3)}, sizes) == 27 + 48 + 2
    # 0.3 of 90 is not quite 27 in floating point; a name in full is no pattern.
    assert most_kept({"head[0]": (0.0, 0.0), "conv": (0.0, 0.29)}, sizes) == 26 + 480


def test_fewest_removals_that_fit_are_found(paths):
    task = problem(paths, Budget(flops=0.5))
    # A weight of the convolution costs 16 multiply-adds.
    assert task.fewest("conv", 160.0, 0, 90) == 80
    assert task.fewest("conv", 159.0, 0, 90) == 81
    assert task.fewest("conv", 160.0, 85, 90) == 85
    assert task.fewest("conv", -1.0, 0, 90) == 90
    assert task.fewest("head", 480.0, 0, 480) == 0
    assert task.layer_cost("conv", torch.tensor([0, 90])).tolist() == [1440.0, 0.0]


def test_a_layer_keeps_a_weight_unless_a_limit_or_a_budget_of_nothing_lets_it_go(paths):
    limits = {"conv": (0.0, 1.0)}
    assert problem(paths, Budget(density=0.5)).ranges == {"conv": (0, 89), "head": (0, 479)}
    assert problem(paths, Budget(density=0.5, limits=limits)).ranges == {"conv": (0, 90), "head": (0, 479)}
    for name in ("density", "flops"):
        assert problem(paths, Budget(**{name: 0})).ranges == {"conv": (0, 90), "head": (0, 480)}
    assert problem(paths, Budget(size=1000)).ranges == {"conv": (0, 89), "head": (0, 479)}
    with pytest.raises(
        ValueError, match=r"one weight per layer .* or allow empty layers with limits=\{'\*': \(0, 1\)\}"
    ):
        problem(paths, Budget(density=0.001))
    with pytest.raises(ValueError, match=r"the layers' limits alone keep 0.5, .* or lower the limits"):
        problem(paths, Budget(density=0.4, limits={"*": (0.5, 1.0)}))


def test_a_file_is_counted_with_all_that_is_in_it(paths):
    file = FileCosts(fixed=300, value_bytes={"conv": 2, "head": 4}, copies={"conv": 1, "head": 2})
    task = problem(paths, Budget(size=1000), file)
    assert task.bound == pytest.approx(700)
    # In places of a byte and of two: 80 of 90 weights are gone, and 470 of 480.
    assert task.cost({"conv": 80, "head": 470}) == 10 * (1 + 2) + 2 * (2 * 2 + 10 * (1 + 4))
    assert task.cost({"conv": 0, "head": 480}) == 90 * 2
    with pytest.raises(
        ValueError, match=r"header alone keep 315 bytes, more than the budget size=314: ask for more, or"
    ):
        problem(paths, Budget(size=314), file)
    assert problem(paths, Budget(size=315), file).bound == pytest.approx(15)
    counts = allocate(paths, Budget(size=400), "relative")
    assert problem(paths, Budget(size=400), file).cost(counts) > 100, (
        "of the layers' weights alone it is another budget"
    )


@pytest.mark.parametrize("kept", [1, 127, 249, 254, 492])
def test_a_share_that_is_rounded_down_by_a_last_bit_still_buys_what_it_says(kept):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(29, 17, bias=False))
    layers = lobs.layer_paths(model, lobs.collect_statistics(model, [torch.randn(50, 29)]), "magnitude")
    for name in ("flops", "density"):
        for allocation in ("uniform", "relative"):
            assert allocate(layers, Budget(**{name: kept / 493}), allocation) == {"0": 493 - kept}
