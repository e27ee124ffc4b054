"""Net-Trim's ADMM against cvxpy, and its path."""

from dataclasses import replace

import cvxpy
import numpy as np
import pytest
import torch

import lobs
from lobs.solvers import make
from lobs.solvers.net_trim import Program


def layer(seed=0, count=40, features=6, out=3):
    torch.manual_seed(seed)
    mixing = torch.randn(features, features, dtype=torch.float64)
    samples = torch.randn(count, features, dtype=torch.float64) @ mixing
    inputs = torch.cat([samples, samples.new_ones(count, 1)], 1)
    statistics = replace(lobs.LayerStatistics.from_samples(samples, bias=True), inputs_sample=inputs)
    return torch.randn(out, features + 1, dtype=torch.float64), inputs, statistics


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.4])
def test_small_programs_agree_with_cvxpy(relu, epsilon):
    weight, inputs, _ = layer()
    program = Program(weight, inputs, bias=True, relu=relu)
    ours = program.solve(epsilon, iterations=5000, tolerance=1e-6).sparse

    x, wanted, active = program.samples.numpy(), program.outputs.numpy(), program.active.numpy()
    unknown = cvxpy.Variable(tuple(weight.shape))
    outputs = x @ unknown.T
    matched = cvxpy.norm(cvxpy.multiply(outputs - wanted, active.astype(float)), "fro")
    constraints = [matched <= epsilon * np.linalg.norm(wanted * active)]
    if relu:
        constraints.append(cvxpy.multiply(outputs, (~active).astype(float)) <= 0)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.abs(unknown[:, :-1]))), constraints)
    problem.solve()

    assert float(ours[:, :-1].abs().sum()) == pytest.approx(problem.value, rel=1e-3)
    produced = x @ ours.numpy().T
    assert np.linalg.norm((produced - wanted) * active) <= (epsilon + 1e-3) * np.linalg.norm(wanted * active)
    if relu:
        assert (produced * ~active).max() <= 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(ours.numpy()[:, :-1], unknown.value[:, :-1], atol=2e-2 * np.abs(unknown.value).max())


def test_a_lower_density_takes_a_larger_error_and_counts_are_exact():
    weight, inputs, statistics = layer(count=200, features=20, out=8)
    path = make("net_trim")(weight, statistics)

    def activation_error(pruned):  # Net-Trim's own measure: what the next layer sees
        return float((torch.relu(inputs @ pruned.T) - torch.relu(inputs @ weight.T)).norm())

    errors = []
    for density in (0.95, 0.85, 0.7):
        count = path.count_for(density)
        pruned, mask = path.at(count)
        assert int((~mask).sum()) == count
        errors.append(activation_error(pruned))
    assert errors == sorted(errors)
    assert errors[-1] < activation_error(make("random")(weight, statistics).at(count)[0])


def test_the_last_layer_has_no_sign_constraint():
    weight, inputs, statistics = layer()
    assert Program(weight, inputs, bias=True, relu=False).active.all()
    assert not Program(weight, inputs, bias=True, relu=True).active.all()
    hidden = make("net_trim")(weight, statistics).at(9)[0]
    output = make("net_trim")(weight, replace(statistics, last=True)).at(9)[0]
    assert not torch.allclose(hidden, output)


def test_resolve_is_least_squares_on_the_support():
    weight, _, statistics = layer(count=100)
    plain, mask = make("net_trim")(weight, statistics).at(9)
    resolved, same = make("net_trim", resolve=True)(weight, statistics).at(9)
    path = make("net_trim")(weight, statistics)
    assert torch.equal(mask, same)
    assert path.measured_error(resolved) <= path.measured_error(plain)


def test_missing_samples_are_named():
    with pytest.raises(ValueError, match=r"net_trim needs raw inputs: collect_statistics\(.*keep_samples"):
        make("net_trim")(torch.randn(3, 4), lobs.LayerStatistics.from_samples(torch.randn(9, 4)))
