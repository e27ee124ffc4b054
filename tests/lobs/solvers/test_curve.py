"""Where curves are measured, and what they are in between."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lobs.solvers.curve import EVERYWHERE, knot_counts, measured, powers_between


@settings(max_examples=60, deadline=None)
@example(total=9500, knots=1812)
@given(total=st.integers(0, 100_000), knots=st.integers(16, 2000))
def test_a_curves_knots_go_from_the_first_to_the_last_count(total, knots):
    counts = knot_counts(total, knots)
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (0, total)
    if total <= max(EVERYWHERE, 4 * knots):
        assert len(counts) == total + 1
    else:
        assert len(counts) <= knots
        middle = max(after - before for before, after in pairwise(counts))
        assert max(counts[1], total - counts[-2]) < middle, "denser towards both ends"


def test_powers_are_found_again_and_nothing_is_lost_before_the_start():
    knots, counts = torch.tensor([0, 10, 12, 30, 100]), torch.arange(101)
    errors = (knots - 10).clamp_min(0).double() ** 2.5
    found = powers_between(knots, errors, counts, 10)
    assert not found[:11].any()
    torch.testing.assert_close(found[knots], errors, rtol=1e-12, atol=0)
    assert found[11] == pytest.approx(float(errors[2]) / 2), "from nothing to something along a line"
    torch.testing.assert_close(found[12:], (counts[12:] - 10).double() ** 2.5)


def test_a_knot_has_its_own_error_to_the_last_digit():
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(200, generator=generator, dtype=torch.float64).sort().values * 1e5
    errors[100:110] = errors[100]
    knots = torch.arange(200) * 3
    assert torch.equal(powers_between(knots, errors, knots, 6), errors)
    level = powers_between(knots, errors, torch.arange(300, 328), 6)
    assert (level == errors[100]).all(), "a level part stays level"


def test_rows_have_knots_of_their_own_and_may_stand_still_or_fall():
    knots = torch.tensor([[0, 0, 4, 4, 8], [0, 2, 4, 6, 8]])
    errors = torch.tensor([[0.0, 0, 4, 4, 8], [0, 3, 1, 0, 5]]).double()
    counts = torch.tensor([[0, 4, 6, 8], [0, 3, 5, 7]])
    found = powers_between(knots, errors, counts, torch.zeros(2, 1))
    assert found[0].tolist() == pytest.approx([0, 4, 6, 8])
    assert found[1, 0] == 0 and 1 <= found[1, 1] <= 3 and 0 <= found[1, 2] <= 1
    assert found[1, 3] == pytest.approx(2.5), "from an error of 0 along a line"
    for row in range(2):
        alone = powers_between(knots[row], errors[row], counts[row], 0)
        torch.testing.assert_close(alone, found[row], rtol=0, atol=0)


def test_more_knots_are_set_where_the_curve_jumps():
    asked = []

    def errors_at(count):
        asked.append(count)
        return torch.tensor([1e-9 * count, 1.0 if count > 7000 else 0.0]).double()

    counts = knot_counts(10_000, 32)
    found = measured(counts, errors_at, 0)
    assert list(found) == sorted(asked) and len(asked) > len(counts)
    assert {7000, 7001} <= set(asked), "the jump lies between neighbours"
    power = measured(counts, lambda count: torch.tensor([count**3.0]).double(), 0)
    assert list(power) == counts
    late = measured([0, 4000, *range(4001, 10_001, 500)], lambda count: torch.tensor([max(0.0, count - 4000.0)]), 4000)
    assert len(late) == 14, "from where nothing is lost yet every curve jumps"


def test_rounding_is_no_error_to_go_on_from():
    knots, counts = torch.tensor([0, 10, 20, 30]), torch.tensor([10, 15, 20, 25])
    found = powers_between(knots, torch.tensor([0.0, 1e-30, 1.0, 4.0]).double(), counts, 0)
    assert found[1] == pytest.approx(0.5)
