"""Exact OBS against its definition, its invariants, and its two implementations against each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from helpers import oracles
from helpers.solver_layers import layers, make_layer
from lobs.solvers import exact_obs, make
from lobs.solvers.exact_obs import ExactOBS
from lobs.solvers.hessian import SingularStatisticsError, damp


def row_orders(path):
    """Each row's inputs in the order in which they leave."""
    return path.rank.argsort(dim=1)


@settings(max_examples=80, deadline=None)
@given(layer=layers, damping=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_same_order_and_curve_as_the_definition(layer, damping):
    weight, _, statistics = make_layer(**layer)
    path = ExactOBS(damping=damping)(weight, statistics)
    plain = oracles.plain_layer(weight, statistics.second_moment, path.damping, statistics.bias)
    dead = statistics.features - len(plain["gaps"][0])
    clear = True
    for ours, order, gaps in zip(row_orders(path).tolist(), plain["orders"], plain["gaps"], strict=True):
        ties = np.flatnonzero(gaps < 1 + 1e-6)
        until = dead + (ties[0] if len(ties) else len(gaps))
        assert ours[:until] == order[:until]
        clear &= not len(ties)
    if clear:
        scale = plain["curve"][-1]
        np.testing.assert_allclose(path.layer_error(), plain["curve"], rtol=1e-6, atol=1e-9 * scale)


def test_merged_order_is_the_heaps():
    weight, _, statistics = make_layer(rows=6, features=25, count=50, dead=3)
    path = ExactOBS()(weight, statistics)
    plain = oracles.plain_layer(weight, statistics.second_moment, path.damping, True)
    sequence = [divmod(int(i), 25) for i in path.rank.flatten().argsort()]
    assert sequence[18:] == plain["sequence"][18:]
    assert {j for _, j in sequence[:18]} == {0, 1, 2}, "inputs that are always zero leave first"


@settings(max_examples=40, deadline=None)
@given(layer=layers, share=st.floats(0, 1), options=st.sampled_from([{}, {"pattern": "0:1"}]))
def test_curve_is_the_damped_error_of_the_weights(layer, share, options):
    weight, _, statistics = make_layer(**layer)
    path = ExactOBS(damping=1e-3, **options)(weight, statistics)
    assert path.total == path.removable
    for count in {0, 1, round(share * path.total), path.total - 1, path.total}:
        pruned, mask = path.at(count)
        assert int((~mask).sum()) == count
        measured = oracles.damped_error(pruned - weight, statistics.second_moment, path.damping)
        assert path.layer_error(count) == pytest.approx(measured, rel=1e-6, abs=1e-9 * path.layer_error(path.total))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 2), features=st.integers(1, 5), bias=st.booleans(), seed=st.integers(0, 100))
def test_never_below_the_best_support_and_equal_for_one_removal(rows, features, bias, seed):
    weight, samples, statistics = make_layer(rows, features, count=12, bias=bias, seed=seed)
    path = ExactOBS(damping=1e-3)(weight, statistics)
    best = oracles.best_of_all_supports(weight.numpy(), samples.numpy(), path.damping, bias)
    curve = path.layer_error().numpy()
    assert (curve >= best * (1 - 1e-7) - 1e-12).all()
    assert curve[1] == pytest.approx(best[1], rel=1e-7)
    assert curve[-1] == pytest.approx(best[-1], rel=1e-7)


def test_sensitivities_are_half_the_increments_at_removal():
    weight, _, statistics = make_layer(rows=3, features=10, count=30)
    path = ExactOBS()(weight, statistics)
    increments = path.layer_error().diff()
    order = path.rank.flatten().argsort()
    torch.testing.assert_close(path.sensitivities.flatten()[order], increments / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_precision_on_ill_conditioned_statistics(precision):
    weight, inputs = oracles.mnist_like(rows=16, features=200)
    statistics = lobs.LayerStatistics.from_samples(inputs, bias=True)
    moment = damp(statistics, 0.0).correlation
    assert torch.linalg.cond(moment) > 1e6
    exact = ExactOBS()(weight, statistics)
    path = ExactOBS(precision=precision)(weight, statistics)
    reference = exact.layer_error()
    torch.testing.assert_close(path.layer_error(), reference, rtol=0.01, atol=1e-7 * float(reference[-1]))
    for density in (0.5, 0.2, 0.1, 0.07, 0.04):
        count = path.count_for(density)
        measured = oracles.damped_error(path.at(count)[0] - weight, statistics.second_moment, path.damping)
        assert measured == pytest.approx(exact.layer_error(count), rel=0.01)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 6),
    pattern=st.sampled_from(["2:4", "1:4", "0:4", "1:2"]),
    dead=st.integers(0, 5),
    seed=st.integers(0, 100),
)
def test_patterns_are_exact_and_greedy(groups, pattern, dead, seed):
    kept, width = map(int, pattern.split(":"))
    features = groups * width
    weight, _, statistics = make_layer(3, features, count=40, dead=min(dead, features), seed=seed)
    path = ExactOBS(pattern=pattern, damping=1e-2)(weight, statistics)
    pruned, mask = path.at(path.total)
    assert (mask[:, :features].reshape(3, groups, width).sum(2) == kept).all()
    for count in (path.total // 3, path.total // 2):
        _, partial = path.at(count)
        assert int((~partial).sum()) == count
        assert (partial[:, :features].reshape(3, groups, width).sum(2) >= kept).all()
    measured = oracles.damped_error(pruned - weight, statistics.second_moment, path.damping)
    assert path.layer_error(path.total) == pytest.approx(measured, rel=1e-6)
    scores = torch.where(path.sensitivities.isinf(), -1.0, path.sensitivities)
    assert int((scores >= 0).sum()) == path.total


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2)])
def test_patterns_leave_in_the_order_of_the_definition(pattern):
    weight, _, statistics = make_layer(rows=5, features=24, count=60)
    path = ExactOBS(pattern=f"{pattern[0]}:{pattern[1]}")(weight, statistics)
    inverse = torch.linalg.inv(statistics.second_moment + path.damping * torch.eye(25)).numpy()
    for row, ours in zip(weight.numpy(), row_orders(path).tolist(), strict=True):
        order, _, _ = oracles.plain_row(row, inverse, 24, pattern)
        assert ours[: len(order)] == order
        assert len(order) == path.total / 5


@settings(max_examples=25, deadline=None)
@given(block=st.integers(1, 4), units=st.integers(1, 6), dead=st.integers(0, 6), seed=st.integers(0, 100))
def test_blocks_leave_whole_and_cheapest_first(block, units, dead, seed):
    features = block * units
    dead = 0 if block == 1 else min(dead, features)  # single inputs that are dead leave first, whatever they cost
    weight, samples, statistics = make_layer(2, features, count=30, dead=dead, seed=seed)
    path = ExactOBS(block=block, damping=1e-2)(weight, statistics)
    for count in range(0, path.total + 1, block):
        _, mask = path.at(count)
        whole = mask[:, :features].reshape(2, units, block)
        assert (whole.all(2) | ~whole.any(2)).all()
        assert int((~mask).sum()) == count
    for count in range(path.total + 1):  # exact inside a block as well
        measured = oracles.damped_error(path.at(count)[0] - weight, statistics.second_moment, path.damping)
        assert path.layer_error(count) == pytest.approx(measured, rel=1e-6, abs=1e-9 * path.layer_error(path.total))
    whole_cost = [
        oracles.best_on_support(
            row.numpy(), samples.numpy(), [j for j in range(features + 1) if j // block != unit], path.damping
        )
        for row in weight
        for unit in range(units)
    ]
    assert path.layer_error(block) == pytest.approx(min(whole_cost), rel=1e-6, abs=1e-12)


def test_one_group_of_all_inputs_changes_nothing():
    weight, _, statistics = make_layer(rows=4, features=24, count=50, dead=2)
    whole, grouped = (ExactOBS(group_size=size)(weight, statistics) for size in (None, 24))
    assert torch.equal(whole.rank, grouped.rank)
    assert torch.equal(whole.layer_error(), grouped.layer_error())


@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"block": 2}])
def test_groups(options, monkeypatch):
    weight, _, statistics = make_layer(rows=5, features=40, count=100, dead=9)
    path = ExactOBS(group_size=8, **options)(weight, statistics)
    alone = ExactOBS(**options)(weight, statistics)
    count = path.total // 2
    pruned, mask = path.at(count)
    assert int((~mask).sum()) == count
    error = path.measured_error(pruned)
    assert error < path.measured_error(make("magnitude")(weight, statistics).at(count)[0])
    assert error <= path.layer_error(count) * (1 + 1e-9), "the curve is measured"
    monkeypatch.setattr(exact_obs, "MOST_SOLVE_OPERATIONS", 0)
    by_group = ExactOBS(group_size=8, **options)(weight, statistics)
    separate = by_group.at(count)[0]
    assert torch.equal(separate == 0, pruned == 0)
    assert error <= by_group.measured_error(separate) < 10 * alone.layer_error(count)
    assert torch.equal(by_group.layer_error(), by_group.layer_error().sort().values)


@pytest.mark.parametrize("options", [{}, {"precision": "float32"}, {"block": 2}])
def test_singular_statistics_raise(options):
    weight, _, statistics = make_layer(rows=3, features=20, count=8)
    with pytest.raises(SingularStatisticsError, match="use a larger damping"):
        ExactOBS(damping=0.0, **options)(weight, statistics)


def test_lost_digits_raise():
    weight, _, statistics = make_layer(rows=3, features=20, count=8)
    with pytest.raises(SingularStatisticsError, match=r"float32.*or float64"):
        ExactOBS(damping=1e-11, precision="float32")(weight, statistics)


@pytest.mark.parametrize("distance", [10.0**-power for power in range(3, 9)])
def test_a_curve_of_nearly_equal_inputs_is_right_or_refused(distance):
    """Their inverse can be computed, and yet little of it is left when one of them has gone."""
    for seed in range(10):
        weight, samples, _ = make_layer(rows=3, features=6, count=50, bias=False, seed=seed)
        samples[:, 1] = samples[:, 0] + distance * samples[:, 1]
        statistics = lobs.LayerStatistics.from_samples(samples)
        try:
            path = ExactOBS(damping=0.0)(weight, statistics)
        except SingularStatisticsError as error:
            assert distance < 1e-4 and "use a larger damping" in str(error)
            continue
        for count in range(1, path.total + 1):
            measured = path.measured_error(path.at(count)[0])
            assert path.layer_error(count) == pytest.approx(measured, rel=2e-3, abs=1e-9)


def test_no_damping_needs_none():
    weight, samples, statistics = make_layer(rows=3, features=12, count=100, dead=2)
    path = ExactOBS(damping=0.0)(weight, statistics)
    count = path.total // 2
    change = path.at(count)[0] - weight
    measured = float((samples @ change.T).square().sum() / len(samples))
    assert path.layer_error(count) == pytest.approx(measured, rel=1e-9)
    assert path.layer_error(6) == pytest.approx(0, abs=1e-12)


def test_scaling_inputs_changes_nothing():
    weight, samples, _ = make_layer(rows=3, features=12, count=100, bias=False)
    for factor in (1e-8, 1e8):
        scaled = lobs.LayerStatistics.from_samples(samples * factor)
        plain = ExactOBS()(weight, lobs.LayerStatistics.from_samples(samples))
        path = ExactOBS(precision="float32")(weight, scaled)
        torch.testing.assert_close(path.layer_error() / factor**2, plain.layer_error(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 5}, "block must divide the layer's 12 inputs, got 5"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"pattern": "2:4", "block": 2}, "not both: pattern=2:4 block=2"),
        ({"group_size": 6, "pattern": "2:4"}, "group_size must be a positive multiple of 4, 'auto' or None; got 6"),
        ({"group_size": 0}, "group_size must be a positive multiple of 1, 'auto' or None; got 0"),
        ({"precision": "half"}, "precision must be one of float64, float32, auto, got 'half'"),
        ({"refine": True, "block": 2}, "leave out pattern, block and group_size"),
    ],
)
def test_wrong_options(options, message):
    weight, _, statistics = make_layer(rows=3, features=12, count=30)
    with pytest.raises(ValueError, match=message):
        make("exact_obs", **options)(weight, statistics)


def test_too_large_a_layer_says_what_to_use(monkeypatch):
    weight, _, statistics = make_layer(rows=3, features=12, count=30)
    monkeypatch.setattr(exact_obs, "MOST_OPERATIONS", 1000)
    with pytest.raises(ValueError, match=r"3 units with 13 inputs.*group_size=512.*lobs with resolve=True"):
        ExactOBS()(weight, statistics)
    ExactOBS(group_size=3)(weight, statistics)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"block": 2}, {"group_size": 8}])
def test_same_path_on_cuda(options):
    weight, _, statistics = make_layer(rows=5, features=40, count=100, dead=4)
    moved = replace(statistics, second_moment=statistics.second_moment.cuda())
    expected, actual = ExactOBS(**options)(weight, statistics), ExactOBS(**options)(weight.cuda(), moved)
    assert torch.equal(actual.rank.cpu(), expected.rank)
    torch.testing.assert_close(actual.at(90)[0].cpu(), expected.at(90)[0])


@pytest.mark.parametrize(("damping", "taken"), [(1e-2, "float32"), (1e-11, "float64")])
def test_precision_is_chosen_by_what_some_rows_show(damping, taken):
    torch.manual_seed(0)
    samples = torch.randn(200, 60, dtype=torch.float64) @ torch.randn(60, 60, dtype=torch.float64)
    if taken == "float64":  # nearly dependent inputs, and next to no damping
        samples[:, 30:] = samples[:, :30] + 1e-5 * samples[:, 30:]
    statistics, weight = lobs.LayerStatistics.from_samples(samples, False), torch.randn(40, 60, dtype=torch.float64)
    path = make("exact_obs", precision="auto", damping=damping)(weight, statistics)
    assert path.note.startswith(f"eliminated in {taken}: float32's error differs by ")
    same = make("exact_obs", precision=taken, damping=damping)(weight, statistics)
    assert torch.equal(path.rank, same.rank)
    exact = make("exact_obs", damping=damping)(weight, statistics)
    counts = range(1, path.total + 1, 97)
    assert all(path.layer_error(count) == pytest.approx(exact.layer_error(count), rel=1e-2) for count in counts)
