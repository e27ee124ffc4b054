"""Swaps against brute force over all swaps, and the refined path."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lobs
from helpers import oracles
from lobs.solvers import make
from lobs.solvers.hessian import damp
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import with_bias_column
from lobs.solvers.swaps import refine


def make_layer(rows, features, count, bias, seed, dead=0):
    torch.manual_seed(seed)
    samples = torch.randn(count, features, dtype=torch.float64) @ torch.randn(features, features, dtype=torch.float64)
    samples[:, :dead] = 0
    weight = torch.randn(rows, features + bias, dtype=torch.float64)
    statistics = lobs.LayerStatistics.from_samples(samples, bias)
    return weight, torch.cat([samples, torch.ones(count, int(bias), dtype=torch.float64)], 1), statistics


def row_errors(weight, mask, hessian, moment):
    change = solve_on_support(weight, mask, hessian) - weight
    return ((change @ moment) * change).sum(1) + hessian.damping * change.square().sum(1)


@settings(max_examples=30, deadline=None)
@example(features=2, bias=False, dead=1, seed=5, share=0.5)
@given(
    features=st.integers(2, 9),
    bias=st.booleans(),
    dead=st.integers(0, 2),
    seed=st.integers(0, 200),
    share=st.floats(0.1, 0.9),
)
def test_follows_the_best_swaps_to_their_end(features, bias, dead, seed, share):
    weight, samples, statistics = make_layer(3, features, 30, bias, seed, dead)
    hessian = damp(statistics, 1e-2)
    kept = with_bias_column(torch.rand(3, features, generator=torch.manual_seed(seed)) < share, bias)
    ours = refine(weight, kept, hessian).numpy()
    for row in range(3):
        mask = kept[row].numpy().copy()
        while True:
            error, best, swap = oracles.best_single_swap(
                weight[row].numpy(), samples.numpy(), mask, hessian.damping, bias
            )
            if swap is None or best >= error * (1 - 1e-7):
                break
            mask[swap[0]], mask[swap[1]] = False, True
        support = np.flatnonzero(ours[row]).tolist()
        reached = oracles.best_on_support(weight[row].numpy(), samples.numpy(), support, hessian.damping)
        assert ours[row].tolist() == mask.tolist() or reached == pytest.approx(error, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    features=st.integers(1, 60),
    bias=st.booleans(),
    seed=st.integers(0, 200),
    share=st.floats(0, 1),
    method=st.sampled_from(["exact_obs", "magnitude", "random"]),
    swaps=st.sampled_from([None, 0, 1, 5]),
)
def test_never_worse_and_same_counts(features, bias, seed, share, method, swaps):
    weight, _, statistics = make_layer(4, features, 50, bias, seed, dead=min(2, features))
    hessian = damp(statistics, 1e-3)
    path = make(method)(weight, statistics)
    _, kept = path.at(round(share * path.total))
    better = refine(weight, kept, hessian, swaps=swaps)
    assert torch.equal(better.sum(1), kept.sum(1))
    assert not bias or better[:, -1].all()
    assert int((better != kept).sum(1).max()) <= (float("inf") if swaps is None else 2 * swaps)
    before = row_errors(weight, kept, hessian, statistics.second_moment)
    after = row_errors(weight, better, hessian, statistics.second_moment)
    assert (after <= before * (1 + 1e-9) + 1e-12).all()


def test_better_than_greedy_on_correlated_inputs():
    weight, inputs = oracles.mnist_like()
    statistics = lobs.LayerStatistics.from_samples(inputs, bias=True)
    greedy = make("exact_obs")(weight, statistics)
    path = make("exact_obs", refine=True)(weight, statistics)
    for density, at_most in ((0.5, 0.8), (0.3, 0.98), (0.2, 0.991), (0.15, 0.985), (0.07, 0.96), (0.03, 0.93)):
        count = path.count_for(density)
        pruned, mask = path.at(count)
        assert int((~mask).sum()) == count
        assert torch.equal(path.kept(count), mask[:, :-1])
        error = oracles.damped_error(pruned - weight, statistics.second_moment, path.damping)
        assert error < at_most * greedy.layer_error(count)
        assert path.layer_error(count) == greedy.layer_error(count)


@pytest.mark.parametrize("nothing", [0.0, 1e-180])
def test_counts_where_swaps_gain_nothing(nothing):
    """Errors that are zero but for rounding: no weight may be swapped for one that is kept."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        samples = torch.randn(1 + seed % 2, 6, generator=generator, dtype=torch.float64).round(decimals=1)
        samples *= torch.rand(6, generator=generator) > 0.3
        weight = torch.randn(2, 6, generator=generator, dtype=torch.float64).round(decimals=1)
        weight[torch.rand(2, 6, generator=generator) > 0.6] = nothing
        path = make("exact_obs", refine=True)(weight, lobs.LayerStatistics.from_samples(samples))
        for count in range(path.total + 1):
            assert int((~path.at(count)[1]).sum()) == count


def test_counts_where_all_that_is_kept_are_dead_inputs():
    weight = torch.tensor([[-1.7, -0.7, 0, 0, -3.5, 0]], dtype=torch.float64)
    samples = torch.tensor([[0, 0, 2.1, 2, 0, -0.4]], dtype=torch.float64)
    path = make("exact_obs", refine=True)(weight, lobs.LayerStatistics.from_samples(samples))
    for count in range(path.total + 1):
        assert int((~path.at(count)[1]).sum()) == count


def test_zeros_neither_come_back_nor_leave():
    weight, _, statistics = make_layer(4, 20, 50, True, 0, dead=2)
    zeros = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    weight[:, :20][zeros] = 0.0
    hessian = damp(statistics, 1e-3)
    kept = with_bias_column(torch.rand(4, 20, generator=torch.Generator().manual_seed(1)) < 0.5, True)
    better = refine(weight, kept, hessian)
    assert torch.equal(better[:, :20][zeros], kept[:, :20][zeros])
    assert torch.equal(better.sum(1), kept.sum(1))
    assert not torch.equal(better, kept)
    nonzero = with_bias_column(~zeros, True)
    errors = [row_errors(weight, mask & nonzero, hessian, statistics.second_moment).sum() for mask in (kept, better)]
    assert errors[1] < errors[0]


def test_wrong_arguments():
    weight, _, statistics = make_layer(2, 5, 20, True, 0)
    hessian = damp(statistics)
    with pytest.raises(ValueError, match=r"bool mask of shape \(2, 6\), got torch.bool \(2, 5\)"):
        refine(weight, torch.ones(2, 5, dtype=torch.bool), hessian)
    with pytest.raises(ValueError, match="swaps must be >= 0 or None, got -1"):
        refine(weight, torch.ones(2, 6, dtype=torch.bool), hessian, swaps=-1)
