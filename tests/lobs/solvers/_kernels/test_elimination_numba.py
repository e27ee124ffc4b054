"""The compiled elimination: on any number of threads, and against the definition."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import oracles
from lobs.solvers._kernels import rows
from lobs.solvers._kernels.elimination_numba import eliminate


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    torch.manual_seed(0)
    factor = torch.randn(30, 12, dtype=torch.float64)
    moment = factor.T @ factor
    scale = moment.diagonal().rsqrt()
    inverse = torch.linalg.inv(moment * scale[:, None] * scale)
    weight, nothing = torch.randn(50, 12, dtype=torch.float64), torch.zeros(50, 12, dtype=torch.bool)
    group, quota = torch.zeros(12, dtype=torch.int64), torch.tensor([12])
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(rows.torch, "get_num_threads", lambda threads=threads: threads)
        found.append(eliminate(weight, nothing, inverse, group, quota, torch.float64))
    for order, increments in found[1:]:
        assert torch.equal(order, found[0][0])
        assert torch.equal(increments, found[0][1])
    error = torch.einsum("ri,ij,rj->r", weight, torch.linalg.inv(inverse), weight)
    torch.testing.assert_close(found[0][1].sum(1), error, rtol=1e-9, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(1, 30),
    fixed=st.integers(0, 2),
    pattern=st.sampled_from([None, (1, 2), (2, 4)]),
    seed=st.integers(0, 999),
)
def test_rows_leave_in_the_order_of_the_definition(features, fixed, pattern, seed):
    torch.manual_seed(seed)
    width = pattern[1] if pattern else 1
    features = -(-features // width) * width
    size = features + fixed
    samples = torch.randn(3 * size, size, dtype=torch.float64)
    moment = samples.T @ samples
    scale = moment.diagonal().rsqrt()
    inverse = torch.linalg.inv(moment * scale[:, None] * scale)
    weight = torch.randn(3, size, dtype=torch.float64)
    group = torch.arange(size) // width if pattern else torch.zeros(size, dtype=torch.int64)
    group[features:] = -1
    quota = torch.full((features // width,), width - pattern[0]) if pattern else torch.tensor([features])
    arguments = weight, torch.zeros_like(weight, dtype=torch.bool), inverse, group, quota, torch.float64
    order, increments = eliminate(*arguments)
    for row, ours, costs in zip(weight.numpy(), order.tolist(), increments.numpy(), strict=True):
        expected, steps, gaps = oracles.plain_row(row, inverse.numpy(), features, pattern)
        if (gaps > 1 + 1e-6).all():
            assert ours == expected
            np.testing.assert_allclose(costs, steps, rtol=1e-6)


def test_a_breakdown_is_marked():
    singular = torch.full((3, 3), 0.1, dtype=torch.float64)  # no inverse of a matrix with unit diagonal
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    group, quota = torch.zeros(3, dtype=torch.int64), torch.tensor([3])
    _, increments = eliminate(torch.ones(1, 3).double(), nothing, singular, group, quota, torch.float64)
    assert increments.isnan().all()
