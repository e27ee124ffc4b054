"""The compiled elimination: on any number of threads, and against the definition."""

import torch

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
