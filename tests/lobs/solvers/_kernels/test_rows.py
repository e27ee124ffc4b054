"""Kernels run over all rows once, on any number of threads."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.solvers._kernels import rows
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
