"""The best weights on a mask against lstsq on the samples."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread, get_ident

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from helpers.oracles import constrained_least_squares
from helpers.solver_layers import layer, make_layer
from lobs.solvers import least_squares
from lobs.solvers._kernels.rows import side_by_side
from lobs.solvers.hessian import SingularStatisticsError, damp
from lobs.solvers.least_squares import solve_on_support


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), bias=st.booleans(), density=st.floats(0, 1), damping=st.sampled_from([1e-6, 1e-2]))
def test_resolve_is_least_squares_on_the_mask(seed, bias, density, damping):
    weight, inputs, statistics = layer(seed, bias=bias)
    kept = torch.rand(weight.shape) < density
    if bias:
        kept[:, -1] = True
    hessian = damp(statistics, damping)
    solved = solve_on_support(weight, kept, hessian)
    expected = constrained_least_squares(weight, inputs, kept, hessian.damping)
    torch.testing.assert_close(solved, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dead", [0, 3])
def test_rows_in_small_batches_give_the_same_weights(monkeypatch, dead):
    weight, samples, statistics = make_layer(rows=12, features=20, count=60, dead=dead)
    hessian = damp(statistics, 1e-2)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 12)[:, None]
    together = solve_on_support(weight, kept, hessian)
    assert not together[~kept].any()
    monkeypatch.setattr("lobs.solvers.least_squares.CACHED_BYTES", 1)
    torch.testing.assert_close(solve_on_support(weight, kept, hessian), together, rtol=1e-9, atol=1e-12)
    alive = samples.square().sum(0) > 0
    expected = constrained_least_squares(weight, samples, kept, hessian.damping)
    torch.testing.assert_close(together[:, alive], expected[:, alive], rtol=1e-6, atol=1e-8)
    assert torch.equal(together[:, ~alive], (weight * kept)[:, ~alive]), "an input that is always zero teaches nothing"


@pytest.fixture
def threads():
    """Three threads, whatever the machine has; in the end as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("at_once", [0, 2**40])
def test_rows_are_solved_side_by_side(monkeypatch, threads, at_once):
    weight, _, statistics = make_layer(rows=50, features=30, count=100)
    hessian = damp(statistics, 1e-2)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 50)[:, None]
    together = solve_on_support(weight, kept, hessian)
    workers = set()
    inner = least_squares._on_kept
    monkeypatch.setattr(least_squares, "_on_kept", lambda *args: workers.add(get_ident()) or inner(*args))
    monkeypatch.setattr(least_squares, "FEWEST_OPERATIONS", 0)
    monkeypatch.setattr(least_squares, "BATCH_BYTES", at_once)
    torch.testing.assert_close(solve_on_support(weight, kept, hessian), together, rtol=1e-9, atol=1e-12)
    assert (get_ident() in workers) == (at_once == 0), "large systems are solved one by one, by all threads"
    assert torch.get_num_threads() == threads
    with torch.inference_mode():
        torch.testing.assert_close(solve_on_support(weight, kept, hessian), together, rtol=1e-9, atol=1e-12)


def test_a_row_that_cannot_be_solved_is_refused_from_any_thread(monkeypatch, threads):
    weight, _, statistics = make_layer(rows=20, features=12, count=60)
    hessian = damp(statistics, 1e-2)
    broken = replace(hessian, correlation=torch.ones_like(hessian.correlation))
    broken.__dict__["inverse"] = torch.ones_like(hessian.correlation)
    monkeypatch.setattr(least_squares, "FEWEST_OPERATIONS", 0)
    with pytest.raises(SingularStatisticsError, match="linearly dependent"):
        solve_on_support(weight, torch.arange(weight.shape[1]).expand(weight.shape) % 2 == 0, broken)
    assert torch.get_num_threads() == threads


def test_a_thread_that_begins_meanwhile_has_all_of_torchs_threads(threads):
    inside, seen, over = Event(), [], Event()

    def other():
        inside.wait(20)
        seen.append(torch.get_num_threads())
        over.set()

    def task(rows):
        seen.append(torch.get_num_threads())
        inside.set()
        over.wait(20)

    thread = Thread(target=other)
    thread.start()
    side_by_side(task, [torch.arange(2)] * 6)
    thread.join()
    assert sorted(seen) == [1] * 6 + [threads] and torch.get_num_threads() == threads


def test_a_thread_that_cannot_be_started_leaves_nobody_waiting(monkeypatch, threads):
    monkeypatch.setattr(ThreadPoolExecutor, "map", lambda *_: (_ for _ in ()).throw(RuntimeError("can't start")))
    with pytest.raises(RuntimeError, match="can't start"):
        side_by_side(lambda rows: None, [torch.arange(2)] * 6)
    assert torch.get_num_threads() == threads


WITHOUT_A_MAIN_THREAD = """
import threading, torch, lobs
from lobs.solvers import make
torch.set_num_threads(2)
network = torch.nn.Sequential(torch.nn.Linear(200, 100))
statistics = lobs.collect_statistics(network, [torch.randn(400, 200)])
def work():
    threading.main_thread().join()
    for solver in (make("lobs", resolve=True), make("exact_obs")):
        print(lobs.prune(network, statistics, solver, density=0.4).density, flush=True)
threading.Thread(target=work).start()
"""


def test_a_thread_goes_on_after_the_main_one_has_ended():
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_MAIN_THREAD], capture_output=True, text=True)
    assert done.stdout.split() == ["0.4", "0.4"], done.stderr


def test_a_mask_that_keeps_all_or_nothing():
    weight, _, statistics = make_layer(rows=3, features=5, count=30)
    hessian = damp(statistics)
    everything = torch.ones_like(weight, dtype=torch.bool)
    torch.testing.assert_close(solve_on_support(weight, everything, hessian), weight)
    assert not solve_on_support(weight, ~everything, hessian).any()


def test_the_weights_type_stays():
    weight, _, statistics = make_layer(rows=3, features=5, count=30)
    kept = torch.rand(weight.shape) < 0.5
    found = solve_on_support(weight.float(), kept, damp(statistics))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), solve_on_support(weight, kept, damp(statistics)), rtol=1e-4, atol=1e-5)


def test_inputs_that_depend_on_each_other_raise():
    samples = torch.randn(30, 3, dtype=torch.float64).sign()  # all products are exact
    statistics = lobs.LayerStatistics.from_samples(samples[:, [0, 0, 1, 1, 2, 2]])
    kept = torch.tensor([[True, True, False, False, False, False]])
    with pytest.raises(lobs.SingularStatisticsError, match="support of 1 rows are linearly dependent with damping 0"):
        solve_on_support(torch.randn(1, 6, dtype=torch.float64), kept, damp(statistics, 0.0))
