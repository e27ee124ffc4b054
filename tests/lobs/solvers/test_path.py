"""The pruning path: counts, curves, tolerances and budgets, for paths that are nested and for paths that are not."""

import pytest
import torch

import lobs
from lobs.solvers import make
from lobs.solvers.curve import EVERYWHERE
from lobs.solvers.path import (
    RankedPath,
    SolvedPath,
    with_bias_column,
)


def test_the_sensitivity_rule_stops_at_the_first_weight_above():
    """Along an exact path L_q is not monotone: what leaves after a weight that is too sensitive does not count."""
    torch.manual_seed(0)
    samples = torch.randn(60, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    path = make("exact_obs")(torch.randn(6, 8, dtype=torch.float64), lobs.LayerStatistics.from_samples(samples))
    in_order = path.sensitivities.flatten()[path.rank.flatten().argsort()].sqrt()
    assert (in_order.diff() < 0).any(), "the example shows nothing"
    for tolerance in in_order.tolist():
        count = path.within(tolerance, rule="sensitivity")
        assert (in_order[:count] <= tolerance).all()
        assert count == path.total or in_order[count] > tolerance


def made(total=None, weight=None, **options):
    """A nested path whose weights leave in the order of their places."""
    weight = torch.arange(1.0, 13).reshape(3, 4) if weight is None else weight
    statistics = lobs.LayerStatistics.from_samples(torch.eye(weight.shape[1]).double() * weight.shape[1] ** 0.5)
    rank = torch.arange(weight.numel(), dtype=torch.int32).reshape(weight.shape)
    return RankedPath(weight, statistics, rank, weight.numel() if total is None else total, **options)


def test_a_nested_path_removes_the_lowest_ranks():
    path = made()
    for count in range(13):
        weight, mask = path.at(count)
        assert mask.flatten().tolist() == [False] * count + [True] * (12 - count)
        assert torch.equal(weight, path.weight * mask)
        assert torch.equal(path.kept(count), mask)
    # Psi is the identity: E is the sum of the squares removed.
    torch.testing.assert_close(path.layer_error()[1:], path.weight.double().flatten().square().cumsum(0))
    assert [path.layer_error(count) for count in (0, 2)] == pytest.approx([0, 5])


def test_compensation_sees_what_is_kept_and_is_not_asked_for_zeros_alone():
    seen = []

    def compensate(support):
        seen.append(support.clone())
        return torch.full(support.shape, 7.0)

    weight = torch.arange(12.0).reshape(3, 4)
    weight[0, 1] = 0.0
    path = made(weight=weight, compensate=compensate)
    assert path.free == 2
    torch.testing.assert_close(path.at(2)[0], weight)
    assert not seen
    pruned, mask = path.at(3)
    assert torch.equal(seen[0], mask)
    assert torch.equal(pruned, 7.0 * mask)


def test_a_unit_of_which_nothing_is_left_loses_its_bias_only_where_units_leave():
    statistics = lobs.LayerStatistics.from_samples(torch.randn(9, 2), bias=True)
    rank = torch.arange(4, dtype=torch.int32).reshape(2, 2)
    for units, left in ((True, [False, True]), (False, [True, True])):
        path = RankedPath(torch.ones(2, 3), statistics, rank, 4, removes_units=units)
        pruned, mask = path.at(2)
        assert mask[:, 2].tolist() == left
        assert (pruned[:, 2] != 0).tolist() == left


def test_a_path_without_nesting_takes_zeros_first_and_asks_for_the_rest():
    weight = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 4.0]])
    statistics = lobs.LayerStatistics.from_samples(torch.eye(3).double())
    asked = []

    def solve(count):
        asked.append(count)
        mask = torch.zeros(2, 3, dtype=torch.bool)
        mask[1, 2] = count < 6
        return torch.full((2, 3), 5.0), mask

    path = SolvedPath(weight, statistics, 6, solve)
    assert path.free == 2
    pruned, mask = path.at(1)
    assert torch.equal(pruned, weight)
    assert int((~mask).sum()) == 1 and not (~mask)[weight != 0].any()
    assert not asked
    pruned, _ = path.at(5)
    assert asked == [5]
    assert not pruned[weight == 0].any()
    assert torch.equal(path.kept(6), torch.zeros(2, 3, dtype=torch.bool))
    cheap = SolvedPath(weight, statistics, 6, solve, cheap=lambda: [0, 4, 6])
    assert cheap.solved_counts() == [0, 2, 4, 6]
    assert cheap.curve_points()[0].tolist() == [0, 2, 4, 6]


def test_densities_are_rounded_down_to_and_patterns_end_early():
    path = made()
    for density, count in ((1.0, 0), (0.5, 6), (0.49, 7), (0.0, 12), (11.999999 / 12, 1)):
        assert path.count_for(density) == count
    short = made(total=6)
    assert short.count_for(0.5) == 6
    with pytest.raises(ValueError, match=r"density 0.4 is below the 0.5 that this path's pattern ends at"):
        short.count_for(0.4)
    with pytest.raises(ValueError, match="between 0 and 1; got nan"):
        path.count_for(float("nan"))
    assert (path.not_all(12), path.not_all(5)) == (11, 5)
    assert made(weight=torch.tensor([[0.0, 0.0, 1.0, 1.0]])).at_least(1) == 2


@pytest.mark.parametrize("size", [5, 40])
def test_the_largest_count_within_a_tolerance_is_found_between_the_knots(size):
    """5 x 5 weights are measured one by one; 40 x 40 at few of their counts."""
    torch.manual_seed(0)
    path = made(weight=torch.rand(size, size) + 0.1)
    errors = path.weight.double().flatten().square().cumsum(0)
    assert (path.total <= EVERYWHERE) == (size == 5)
    for tolerance in torch.linspace(0.05, 1.1, 9).tolist():
        allowed = tolerance**2 * float(errors[-1])
        expected = int((errors <= allowed).sum())
        assert path.within(allowed**0.5) == expected
    assert path.within(0.0) == 0


@pytest.mark.parametrize("zeros", [0, 700])
@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_between_the_knots_the_error_follows_a_power(zeros, power):
    total = 40 * 40
    growth = torch.arange(total - zeros + 1).double() ** power
    errors = torch.cat([torch.zeros(zeros), growth / growth[-1]])
    weight = errors.diff().clamp_min(0).sqrt().reshape(40, 40)
    path = made(weight=weight)
    assert path.free == zeros
    counts = torch.arange(zeros + 5, total + 1)
    for found in (path.layer_error()[counts], torch.tensor([path.layer_error(int(count)) for count in counts])):
        torch.testing.assert_close(found.double(), errors[counts], rtol=2e-3, atol=0)
    counts, found = path.curve_points()
    assert len(counts) == total + 1 - max(0, zeros - 1)
    torch.testing.assert_close(found, path.layer_error()[counts], rtol=0, atol=0)


def test_curves_are_thinned_where_too_many_points_are_known():
    path = made(weight=torch.rand(50, 50), curve=torch.arange(2501).double())
    assert len(path.curve_points(5000)[0]) == 2501
    counts, errors = path.curve_points(100)
    assert len(counts) <= 101
    assert torch.equal(errors, counts.double())


def test_curves_never_fall_and_sensitivities_are_those_removed():
    falling = torch.tensor([0.0, 2, 1, 3] + [4.0] * 9).double()
    path = made(curve=falling, sensitivities=torch.arange(12.0).reshape(3, 4))
    assert path.layer_error()[:4].tolist() == [0, 2, 2, 3]
    assert [path.sensitivity_threshold(count) for count in (0, 1, 5)] == [0.0, 0.0, 4.0]
    assert made().sensitivity_threshold(3) is None
    for call in (path.at, path.kept, path.layer_error):
        with pytest.raises(ValueError, match="between 0 and 12, got 13"):
            call(13)


def test_a_biases_column_is_always_kept():
    kept = torch.tensor([[True, False], [False, False]])
    assert with_bias_column(kept, False) is kept
    assert with_bias_column(kept, True).tolist() == [[True, False, True], [False, False, True]]
