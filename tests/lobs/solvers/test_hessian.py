"""The damped second moment against autograd, the paper's recursion and plain inverses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from helpers.solver_layers import layer, layers, make_layer
from lobs.calibration.accumulator import InputSums
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers import make
from lobs.solvers.hessian import (
    SingularStatisticsError,
    _scaled,
    checked_cholesky,
    damp,
    damped_groups,
    recursive_inverse,
)


def test_figure_1_the_hessian_has_identical_blocks():
    """The Hessian of E in vec(W) is block diagonal with one block 2 Psi per output unit."""
    weight, inputs, statistics = layer(out=3, features=4)

    def error(theta):
        return ((inputs @ (theta.reshape(weight.shape) - weight).T).square().sum()) / len(inputs)

    hessian = torch.autograd.functional.hessian(error, weight.flatten().clone())
    expected = torch.block_diag(*[2 * statistics.second_moment] * 3)
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("alpha", [1e4, 1e8])
def test_the_papers_recursion_is_the_damped_inverse(alpha):
    _, inputs, statistics = layer(count=4)  # fewer samples than inputs: singular without damping
    hessian = damp(statistics, alpha=alpha)
    inverse = hessian.inverse / torch.outer(hessian.scale, hessian.scale)
    torch.testing.assert_close(recursive_inverse(inputs, alpha), inverse, rtol=1e-4, atol=1e-4 * alpha)


def test_wrong_damping_is_named():
    weight, _, statistics = layer()
    with pytest.raises(ValueError, match=r"damping must be >= 0.*got -1"):
        make("lobs", damping=-1)(weight, statistics)
    with pytest.raises(ValueError, match=r"alpha must be > 0.*got 0"):
        make("lobs", alpha=0)(weight, statistics)


@settings(max_examples=40, deadline=None)
@given(layer=layers, damping=st.sampled_from([1e-3, 1e-1]))
def test_inverse_and_sensitivities_are_those_of_the_plain_damped_matrix(layer, damping):
    layer["spread"] = min(layer["spread"], 1.0)
    layer["dead"] = min(layer["dead"], layer["features"])
    weight, _, statistics = make_layer(**layer)
    found = damp(statistics, damping)
    moment = statistics.second_moment
    alive = moment.diagonal() > 0
    assert torch.equal(found.alive, alive.nonzero()[:, 0])
    inputs = moment.diagonal()[: statistics.features]
    assert found.damping == pytest.approx(damping * float(inputs[inputs > 0].mean() if inputs.any() else 0))
    if not found.damping:
        return
    plain = torch.linalg.inv(moment + found.damping * torch.eye(len(moment), dtype=torch.float64))
    inverse = found.inverse / torch.outer(found.scale, found.scale)
    torch.testing.assert_close(inverse, plain[alive][:, alive], rtol=1e-6, atol=1e-9 * float(plain.abs().max()))
    torch.testing.assert_close(found.inverse_diagonal, plain.diagonal(), rtol=1e-6, atol=0)
    features = statistics.features
    expected = weight[:, :features] ** 2 / (2 * plain.diagonal()[:features])
    torch.testing.assert_close(found.sensitivities(weight), expected, rtol=1e-6, atol=1e-12)


def test_dead_inputs_may_be_taken_in_with_lambda_on_the_diagonal():
    _, _, statistics = make_layer(rows=2, features=6, count=40, dead=2)
    whole = damp(statistics, 1e-2).with_dead_inputs()
    matrix = whole.correlation * torch.outer(whole.scale, whole.scale)
    expected = statistics.second_moment + whole.damping * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(matrix, expected)
    assert whole.alive.tolist() == list(range(7))


def test_without_damping_a_dead_inputs_inverse_is_infinite():
    _, _, statistics = make_layer(rows=2, features=6, count=40, dead=2)
    assert damp(statistics, 0.0).inverse_diagonal.isinf().tolist() == [True, True, *[False] * 5]


def test_wide_layers_are_scaled_in_float32_and_by_blocks_of_rows(monkeypatch):
    _, _, statistics = make_layer(rows=2, features=6, count=40, dead=2)
    exact = damp(statistics)
    monkeypatch.setattr("lobs.solvers.hessian.FLOAT64_FEATURES", 4)
    wide = damp(statistics)
    assert (exact.correlation.dtype, wide.correlation.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(wide.correlation.double(), exact.correlation, rtol=1e-6, atol=1e-6)
    factors = torch.rand(5, dtype=torch.float64)
    parts = [_scaled(statistics.second_moment, exact.alive, factors, torch.float64, rows) for rows in (1, 3, 99)]
    chosen = statistics.second_moment[exact.alive][:, exact.alive]
    for part in parts:
        torch.testing.assert_close(part, chosen * torch.outer(factors, factors))


def test_groups_are_damped_one_by_one():
    moments = [make_layer(rows=2, features=4, count=30, seed=seed)[2] for seed in (0, 1)]
    stacked = replace(moments[0], second_moment=torch.stack([layer.second_moment for layer in moments]))
    for found, own in zip(damped_groups(stacked, 1e-2), moments, strict=True):
        assert torch.equal(found.correlation, damp(own, 1e-2).correlation)
    with pytest.raises(ValueError, match="one group at a time; these statistics have 2 groups"):
        damp(stacked)


def test_what_cannot_be_factorised_is_refused():
    _, _, statistics = make_layer(rows=2, features=3, count=9)
    for value in (-1.0, float("nan")):
        moment = statistics.second_moment.clone()
        moment[1, 1] = value
        with pytest.raises(ValueError, match="a diagonal that is negative or not finite"):
            damp(replace(statistics, second_moment=moment))
    with pytest.raises(SingularStatisticsError, match=r"3 inputs is singular in float64 .* with damping 0.5"):
        checked_cholesky(torch.ones(3, 3, dtype=torch.float64), 0.5)
    assert checked_cholesky(torch.zeros(0, 0), 0.0).shape == (0, 0)
    with pytest.raises(ValueError, match=r"expected samples \[n, d\] and alpha > 0, got \(3,\) and 1"):
        recursive_inverse(torch.ones(3), 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", ["lobs", "exact_obs", "sparsegpt"])
def test_the_scale_of_the_inputs_decides_nothing(method, groups, bias):
    """What is lost of the outputs' spread, however small the inputs are beside the bias's 1."""
    torch.manual_seed(0)
    samples = torch.randn(groups, 400, 4, dtype=torch.float64) @ torch.randn(groups, 4, 9, dtype=torch.float64)
    samples += 0.1 * torch.randn_like(samples)
    weight = torch.randn(4, 9 + bias, dtype=torch.float64)
    lost = []
    for scale in (1.0, 1e-3, 1e-7):
        sums = InputSums(bias)
        sums.add(samples * scale)
        moment = sums.second_moment("it")
        statistics = LayerStatistics(moment if groups > 1 else moment[0], 400, 400, bias)
        path = make(method)(weight, statistics)
        change = (path.at(path.count_for(0.5))[0] - weight).unflatten(0, (groups, -1))
        ones = samples.new_ones(groups, 400, int(bias))
        outputs = torch.cat([samples * scale, ones], 2) @ change.mT
        lost.append(float(outputs.square().sum()) / scale**2)
    assert lost == pytest.approx([lost[0]] * 3, rel=2e-2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("method", ["lobs", "exact_obs", "sparsegpt"])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_weights_of_a_dead_group_leave_first(method, groups, bias, scale):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, 3, groups=groups, bias=bias).eval()
    images = torch.randn(32, 8, 6, 6) * scale
    images[:, : 8 // groups] = 0
    mask = lobs.prune(layer, batches=[images], method=method, density=0.11).masks[""]
    assert not mask[: 8 // groups].any() and mask[8 // groups :].any()
