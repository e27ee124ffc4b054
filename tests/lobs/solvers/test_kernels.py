"""Kernels run over all rows once, on any number of threads; what they compute is tested beside their solvers."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.solvers._kernels import rows
from lobs.solvers._kernels.elimination_numba import eliminate
from lobs.solvers._kernels.rows import over_rows


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 300), threads=st.integers(1, 9))
def test_every_row_is_worked_on_once(count, threads):
    seen, lock, workers = [], threading.Lock(), set()

    def task(part):
        with lock:
            seen.extend(range(count)[part])
            workers.add(threading.get_ident())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows.torch, "get_num_threads", lambda: threads)
        over_rows(task, count)
    assert sorted(seen) == list(range(count))
    assert len(workers) <= min(threads, max(count, 1))
    if threads == 1:
        assert workers <= {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_any_slice_reaches_the_caller(threads, monkeypatch):
    monkeypatch.setattr(rows.torch, "get_num_threads", lambda: threads)

    def task(part):
        if 17 in range(40)[part]:
            raise FloatingPointError("row 17")

    with pytest.raises(FloatingPointError, match="row 17"):
        over_rows(task, 40)


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
