"""The order in which weights leave, against sorting by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.solvers.ranking import Pattern, leaving_zeros, parse_pattern, rank_by_score, ranks_of_order, row_ranks


def drawn(rows, features, seed, zero_share):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, features), generator=generator).double()  # with ties
    scores[torch.rand(scores.shape, generator=generator) < 0.1] = float("inf")
    return scores, torch.rand(scores.shape, generator=generator) < zero_share


layers = {
    "rows": st.integers(1, 4),
    "features": st.sampled_from([4, 8, 12]),
    "seed": st.integers(0, 999),
    "zero_share": st.sampled_from([0.0, 0.3, 1.0]),
}


def by_hand(scores, zeros, allowed):
    """Positions in the order in which they leave: zeros, then by score, ties by position."""
    places = [(r, c) for r in range(scores.shape[0]) for c in range(scores.shape[1]) if allowed[r, c]]
    return sorted(places, key=lambda place: (not zeros[place], float(scores[place]) if not zeros[place] else 0.0))


def order_of(rank, total):
    features = rank.shape[1]
    return [divmod(int(index), features) for index in rank.flatten().argsort()[:total]]


@settings(max_examples=60, deadline=None)
@given(**layers)
def test_zeros_leave_first_then_the_smallest_scores(rows, features, seed, zero_share):
    scores, zeros = drawn(rows, features, seed, zero_share)
    rank, total = rank_by_score(scores, zeros)
    assert total == rows * features
    assert sorted(rank.flatten().tolist()) == list(range(total))
    assert order_of(rank, total) == by_hand(scores, zeros, torch.ones_like(zeros))


@settings(max_examples=60, deadline=None)
@given(pattern=st.sampled_from([(0, 1), (1, 2), (2, 4), (3, 4)]), **layers)
def test_of_every_group_the_smallest_may_leave(pattern, rows, features, seed, zero_share):
    kept, group = pattern
    scores, zeros = drawn(rows, features, seed, zero_share)
    rank, total = rank_by_score(scores, zeros, f"{kept}:{group}")
    allowed = torch.zeros_like(zeros)
    for row in range(rows):
        for start in range(0, features, group):
            places = range(start, start + group)
            keys = {c: float("-inf") if zeros[row, c] else float(scores[row, c]) for c in places}
            for column in sorted(places, key=keys.get)[: group - kept]:
                allowed[row, column] = True
    assert total == int(allowed.sum()) == rows * features * (group - kept) // group
    assert torch.equal(rank < total, allowed)
    assert order_of(rank, total) == by_hand(scores, zeros, allowed)
    assert torch.equal(leaving_zeros(zeros, Pattern(*pattern)), allowed & zeros)


@settings(max_examples=60, deadline=None)
@given(**layers)
def test_rows_lose_their_weights_in_step(rows, features, seed, zero_share):
    scores, zeros = drawn(rows, features, seed, zero_share)
    rank, total = rank_by_score(scores, zeros, per_row=True)
    free = int(zeros.sum())
    assert torch.equal(rank < free, zeros)
    for count in range(free, total + 1):
        removed = (rank < count).sum(1)
        unfinished = removed[removed > zeros.sum(1)]  # rows that have lost more than their zeros
        if len(unfinished):
            others = removed[removed < unfinished.max() - 1]
            assert not len(others), "a row lost its (n+1)-th before another one's n-th"
    for row in range(rows):
        alone, _ = rank_by_score(scores[row : row + 1], zeros[row : row + 1])
        assert torch.equal(row_ranks(rank[row]), alone[0].long())


def test_zeros_without_a_pattern_all_leave():
    zeros = torch.tensor([[True, True, False, True]])
    assert torch.equal(leaving_zeros(zeros, None), zeros)
    assert leaving_zeros(zeros, Pattern(2, 4)).tolist() == [[True, True, False, False]]
    assert leaving_zeros(zeros, Pattern(3, 4)).tolist() == [[True, False, False, False]]


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(9)))
def test_ranks_are_the_inverse_of_an_order(order):
    rank = ranks_of_order(torch.tensor(order))
    assert rank.dtype == torch.int32
    assert [order[place] for place in rank.argsort().argsort().tolist()] == [order[r] for r in rank.tolist()]
    assert rank[torch.tensor(order)].tolist() == list(range(9))


def test_patterns_are_read():
    assert parse_pattern(None, 7) is None
    assert parse_pattern("2:4", 8) == (2, 4, 1)
    assert parse_pattern("0:1", 7) == (0, 1, 1)
    assert parse_pattern(Pattern(2, 4, 9), 72) == (2, 4, 9)


def test_with_a_step_the_groups_are_those_of_the_channels_at_one_place_of_the_kernel():
    pattern, kernel = Pattern(1, 2, 3), torch.arange(2 * 4 * 3).reshape(2, 4, 3)  # [out, channels, places]
    groups = pattern.grouped(kernel.flatten(1))
    expected = [[[int(kernel[o, c + i, k]) for i in range(2)] for c in (0, 2) for k in range(3)] for o in range(2)]
    assert groups.tolist() == expected
    assert torch.equal(pattern.flat(groups), kernel.flatten(1))
    with pytest.raises(ValueError, match="pattern 2:4: 4 does not divide the layer's 3 input channels"):
        parse_pattern(Pattern(2, 4, 9), 27)


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "2-4", "-1:4", "2:4:8", "", 2])
def test_texts_that_are_no_pattern_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern must read N:M with 0 <= N < M"):
        parse_pattern(pattern, 8)


def test_a_pattern_divides_the_inputs_and_scores_are_numbers():
    with pytest.raises(ValueError, match="pattern 2:4: 4 does not divide the layer's 6 inputs"):
        parse_pattern("2:4", 6)
    with pytest.raises(ValueError, match="a score is NaN"):
        rank_by_score(torch.tensor([[1.0, float("nan")]]), torch.zeros(1, 2, dtype=torch.bool))
