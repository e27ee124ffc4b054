"""Equal slopes and dynamic programming against brute force over all splits."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.allocation.budget import Budget, Problem
from lobs.allocation.knapsack import dynamic_program, equal_slopes, give_back, interpolate, lower_hull
from lobs.export.sparse_layout import sparse_bytes

COSTS = {
    "weights": (lambda size: lambda kept: kept.double()),
    "operations": (lambda size: lambda kept: kept.double() * size),
    "bytes": (lambda size: lambda kept: sparse_bytes(kept, size)),
}


def make_problem(seed, kind, share, convex=False, sizes=(9, 6, 7)):
    generator = torch.Generator().manual_seed(seed)
    curves, costs = {}, {}
    for index, size in enumerate(sizes):
        rises = torch.rand(size, generator=generator, dtype=torch.float64) ** 3
        rises = rises.sort().values if convex else rises
        losses = torch.cat([torch.zeros(1, dtype=torch.float64), rises.cumsum(0)])
        curves[f"layer{index}"] = torch.arange(size + 1), losses
        costs[f"layer{index}"] = COSTS[kind](size)
    removable = {name: len(counts) - 1 for name, (counts, _) in curves.items()}
    ranges = {name: (0, size) for name, size in removable.items()}
    ranges["layer1"] = (1, removable["layer1"] - 1)
    whole = sum(float(costs[name](torch.tensor(size))) for name, size in removable.items())
    least = float(costs["layer1"](torch.tensor(1)))
    bound = max(least, float(int(share * whole)))
    return curves, Problem(Budget(density=1.0), costs, bound, removable, ranges)


def splits(problem):
    for split in product(*(range(low, high + 1) for low, high in problem.ranges.values())):
        counts = dict(zip(problem.ranges, split, strict=True))
        if problem.cost(counts) <= problem.bound:
            yield counts


def total(curves, counts):
    return sum(float(interpolate(curves[name], torch.tensor([count]))[0]) for name, count in counts.items())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(list(COSTS)), share=st.floats(0, 1))
def test_dynamic_programming_finds_the_best_split(seed, kind, share):
    curves, problem = make_problem(seed, kind, share)
    best = min(total(curves, counts) for counts in splits(problem))
    assert total(curves, dynamic_program(curves, problem)) == pytest.approx(best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_equal_slopes_are_best_for_convex_curves(seed, share):
    curves, problem = make_problem(seed, "weights", share, convex=True)
    best = min(total(curves, counts) for counts in splits(problem))
    assert total(curves, equal_slopes(curves, problem)) == pytest.approx(best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(list(COSTS)), share=st.floats(0, 1))
def test_equal_slopes_are_best_for_the_hulls_up_to_one_segment(seed, kind, share):
    """With the last segment taken whole, no split that costs as much has a smaller sum of hulls."""
    curves, problem = make_problem(seed, kind, share)
    hulls, longest = {}, 0.0
    for name, (low, high) in problem.ranges.items():
        counts = torch.arange(low, high + 1)
        costs, losses = problem.layer_cost(name, counts), curves[name][1][low : high + 1]
        saved = (costs[0] - costs).tolist()
        hull = lower_hull(saved, losses.tolist())
        steps = losses[hull].diff()
        assert (steps.div(torch.tensor(saved, dtype=torch.float64)[hull].diff()).diff() >= -1e-9).all(), "convex"
        longest = max(longest, float(steps.max()) if len(steps) else 0.0)
        here = torch.tensor(saved, dtype=torch.float64)
        vertices = torch.tensor(hull)
        right = torch.searchsorted(here[vertices], here).clamp(1, max(1, len(hull) - 1))
        left = vertices[right - 1]
        right = vertices[right.clamp_max(len(hull) - 1)]
        part = ((here - here[left]) / (here[right] - here[left])).nan_to_num(0.0)
        hulls[name] = counts, losses[left] + part * (losses[right] - losses[left])
        assert (hulls[name][1] <= losses + 1e-9).all()
    chosen = equal_slopes(curves, problem)
    best = min(
        sum(float(hulls[name][1][count - problem.ranges[name][0]]) for name, count in counts.items())
        for counts in splits(problem)
    )
    ours = sum(float(hulls[name][1][count - problem.ranges[name][0]]) for name, count in chosen.items())
    assert ours <= best + longest + 1e-9
    assert problem.cost(chosen) <= problem.bound


@pytest.mark.parametrize("method", [equal_slopes, dynamic_program])
def test_budget_is_met_exactly_with_points_far_apart(method):
    curves, problem = make_problem(1, "weights", 1.0, sizes=(1000, 300, 500))
    sparse = {}
    for name, (counts, losses) in curves.items():
        points = torch.tensor([0, 17, len(counts) // 2, len(counts) - 1])
        sparse[name] = points, losses[points]
    for bound in (1.0, 2.0, 333.0, 777.0, 1799.0):
        task = Problem(problem.budget, problem.costs, bound, problem.removable, problem.ranges)
        assert task.cost(method(sparse, task)) == bound
    task = Problem(problem.budget, problem.costs, 1e6, problem.removable, problem.ranges)
    assert method(sparse, task) == {"layer0": 0, "layer1": 1, "layer2": 0}


def test_few_units_of_the_budget_still_respect_it():
    curves, problem = make_problem(2, "bytes", 0.3, sizes=(1000, 300, 500))
    fine, coarse = (dynamic_program(curves, problem, bins) for bins in (4096, 50))
    assert problem.cost(coarse) <= problem.bound
    assert total(curves, fine) <= total(curves, coarse) <= 1.2 * total(curves, fine)


def test_giving_back_follows_the_steepest_loss():
    curves = {
        "steep": (torch.arange(5), torch.tensor([0.0, 1, 3, 6, 10]).double()),
        "flat": (torch.arange(5), torch.tensor([0.0, 1, 2, 3, 4]).double()),
    }
    costs = dict.fromkeys(curves, lambda kept: kept.double())
    problem = Problem(Budget(density=0.5), costs, 3.0, dict.fromkeys(curves, 4), dict.fromkeys(curves, (0, 4)))
    assert give_back({"steep": 4, "flat": 4}, curves, problem) == {"steep": 1, "flat": 4}


def test_a_free_step_is_taken_first_and_ties_keep_their_order():
    flat = torch.arange(4), torch.tensor([0.0, 0, 1, 2]).double()
    costs = dict.fromkeys("ab", lambda kept: kept.double())
    for bound, counts in ((4.0, (1, 1)), (3.0, (2, 1)), (2.0, (3, 1)), (0.0, (3, 3))):
        problem = Problem(Budget(density=0.5), costs, bound, dict.fromkeys("ab", 3), dict.fromkeys("ab", (0, 3)))
        assert tuple(equal_slopes({"a": flat, "b": flat}, problem).values()) == counts


def two_layers(first, second, bound, costs=(1, 1)):
    """Two layers' losses after no, one, two, ... removals, and a bound on what is left of them."""
    curves = {
        name: (torch.arange(len(losses)), torch.tensor(losses).double())
        for name, losses in zip("ab", (first, second), strict=True)
    }
    removable = {name: len(losses) - 1 for name, (_, losses) in curves.items()}
    each = {name: lambda kept, cost=cost: kept.double() * cost for name, cost in zip("ab", costs, strict=True)}
    return curves, Problem(
        Budget(density=0.5), each, bound, removable, {name: (0, most) for name, most in removable.items()}
    )


@pytest.mark.parametrize(
    ("costs", "bound", "expected"),
    # A weight of a saves a loss of 3 and then of 5, one of b of 2 and then of 1.
    [((1, 1), 1.0, (1, 2)), ((1, 1), 3.0, (0, 1)), ((2, 1), 1.0, (2, 1)), ((2, 1), 2.0, (2, 0)), ((2, 1), 3.0, (1, 1))],
)
def test_what_is_left_goes_where_a_unit_of_cost_saves_most(costs, bound, expected):
    curves, problem = two_layers([0, 5, 8], [0, 1, 3], bound, costs)
    given = give_back({"a": 2, "b": 2}, curves, problem)
    assert tuple(given.values()) == expected
    assert problem.cost(given) <= bound


def test_only_the_next_point_of_a_curve_tells_what_giving_back_saves():
    curves, problem = two_layers([0, 0, 8], [0, 5, 9], 1.0)
    assert give_back({"a": 2, "b": 2}, curves, problem) == {"a": 1, "b": 2}
    assert give_back({"a": 2, "b": 2}, curves, replace(problem, bound=2.0)) == {"a": 1, "b": 1}
    assert give_back({"a": 1, "b": 0}, curves, replace(problem, bound=2.0)) == {"a": 1, "b": 0}


def test_the_last_segment_is_taken_in_part_although_its_curve_bends():
    points = torch.tensor([0, 5, 10])
    curves, problem = two_layers([0.0] * 11, [0.0] * 11, 7.0)
    curves = {
        "a": (points, torch.tensor([0.0, 8.0, 10.0]).double()),
        "b": (points[[0, 2]], torch.tensor([0.0, 5.0]).double()),
    }
    # The hull of a rises by 1 a weight, that of b by half of one: b goes, and three weights of a.
    assert equal_slopes(curves, problem) == {"a": 3, "b": 10}


def test_segments_are_taken_until_the_bound_is_met_and_no_further():
    curves, problem = two_layers([0, 1, 2, 30], [0, 2, 4, 40], 4.0)
    assert equal_slopes(curves, problem) == {"a": 2, "b": 0}
    for bound, expected in ((6.0, (0, 0)), (5.0, (1, 0)), (3.0, (2, 1)), (2.0, (2, 2)), (1.0, (3, 2)), (0.0, (3, 3))):
        for method in (equal_slopes, dynamic_program):
            _, problem = two_layers([0, 1, 2, 30], [0, 2, 4, 40], bound)
            assert tuple(method(curves, problem).values()) == expected


def test_limits_hold_where_the_other_layer_is_far_more_expensive():
    curves, problem = two_layers([0, 1, 2, 3, 4, 5], [0, 100, 200, 300, 400, 500], 6.0)
    limited = replace(problem, ranges={"a": (1, 2), "b": (0, 4)})
    for method in (equal_slopes, dynamic_program):
        assert method(curves, limited) == {"a": 2, "b": 2}
        assert method(curves, replace(limited, bound=100.0)) == {"a": 1, "b": 0}
        assert method(curves, replace(limited, bound=4.0)) == {"a": 2, "b": 4}


def test_units_of_a_coarse_budget_are_rounded_up():
    """Four removals of a layer that saves one unit of three weights only where all three are gone."""
    curves, problem = two_layers([0, 1, 1, 1, 10, 11, 12], [0, 6, 6, 6, 6, 6, 6], 6.0)
    assert dynamic_program(curves, problem) == {"a": 0, "b": 6}
    coarse = dynamic_program(curves, problem, bins=2)
    assert coarse == {"a": 0, "b": 6}
    assert dynamic_program(curves, replace(problem, bound=7.0), bins=2) == {"a": 0, "b": 5}


@pytest.mark.parametrize(
    ("losses", "vertices"),
    [
        ([0, 1, 2, 3], [0, 3]),
        ([0, 2, 3, 3], [0, 3]),
        ([0, 0, 1, 3], [0, 1, 2, 3]),
        ([0, 5, 1, 3], [0, 2, 3]),
        ([3, 1, 0, 0], [0, 1, 2, 3]),
        ([2], [0]),
        ([2, 7], [0, 1]),
    ],
)
def test_the_lower_hull_has_the_corners_of_the_convex_curve_below(losses, vertices):
    assert lower_hull(range(len(losses)), losses) == vertices


def test_a_curve_is_linear_between_its_points():
    curve = torch.tensor([0, 4, 6]), torch.tensor([1.0, 3.0, 9.0]).double()
    assert interpolate(curve, torch.arange(7)).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 6.0, 9.0]
    assert interpolate((torch.tensor([0]), torch.tensor([2.0])), torch.tensor([0, 0])).tolist() == [2.0, 2.0]
