"""The compiled swaps one by one, against brute force over all of them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.solvers._kernels.swaps_numba import swap_rows


def drawn(rows, size, seed):
    """Weights ``[rows, d]`` and a matrix with unit diagonal."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    moment = samples.T @ samples
    scale = moment.diagonal().rsqrt()
    matrix = moment * scale[:, None] * scale
    matrix.diagonal().fill_(1.0)
    kept = torch.rand(rows, size, generator=generator) < 0.5
    return torch.randn(rows, size, generator=generator, dtype=torch.float64), matrix, kept


def best(trained, matrix, kept):
    """The best weights on a mask, and their error."""
    support = np.flatnonzero(kept)
    solved = np.zeros_like(trained)
    if len(support):
        solved[support] = np.linalg.solve(matrix[np.ix_(support, support)], matrix[support] @ trained)
    change = solved - trained
    return solved, float(change @ matrix @ change)


def one_swap(trained, matrix, kept, candidates, free, least_gain):
    """The mask after the best swap, where one gains enough."""
    _, error = best(trained, matrix, kept)
    tried = {}
    for out in range(free):
        for new in range(free):
            if kept[out] and not kept[new] and candidates[new]:
                changed = kept.copy()
                changed[out], changed[new] = False, True
                tried[out, new] = best(trained, matrix, changed)[1]
    if not tried:
        return kept, error
    swap = min(tried, key=tried.get)
    if not error - tried[swap] > least_gain * error:
        return kept, error
    result = kept.copy()
    result[swap[0]], result[swap[1]] = False, True
    return result, tried[swap]


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(2, 9),
    fixed=st.integers(0, 1),
    barred=st.sampled_from([0.0, 0.4]),
    limit=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_so_many_best_swaps_are_made(size, fixed, barred, limit, seed):
    trained, matrix, kept = drawn(3, size, seed)
    free = size - fixed
    kept[:, free:] = True
    candidates = torch.rand(kept.shape, generator=torch.Generator().manual_seed(seed)) >= barred
    candidates |= kept
    solved = torch.from_numpy(
        np.stack([best(row, matrix.numpy(), mask)[0] for row, mask in zip(trained.numpy(), kept.numpy(), strict=True)])
    )
    before = kept.clone()
    found = swap_rows(trained, solved, kept, candidates, matrix, free, limit, 1e-6)
    assert torch.equal(kept, before), "the given mask was changed"
    for row in range(3):
        mask = kept[row].numpy()
        for _ in range(limit):
            mask, error = one_swap(trained[row].numpy(), matrix.numpy(), mask, candidates[row].numpy(), free, 1e-6)
        ours = found[row].numpy()
        if limit and not np.array_equal(ours, mask):  # a tie
            np.testing.assert_allclose(best(trained[row].numpy(), matrix.numpy(), ours)[1], error, rtol=1e-6)
        assert ours.sum() == kept[row].sum()
        assert not (ours & ~before[row].numpy() & ~candidates[row].numpy()).any()
        assert ours[free:].all()
