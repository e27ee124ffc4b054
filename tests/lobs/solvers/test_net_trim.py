"""Net-Trim's ADMM against cvxpy, and its path."""

from dataclasses import replace
from itertools import pairwise

import cvxpy
import numpy as np
import pytest
import torch

import lobs
from lobs.solvers import make
from lobs.solvers.net_trim import KNOTS, NetTrim, Program, _Grid


def layer(seed=0, count=40, features=6, out=3):
    torch.manual_seed(seed)
    mixing = torch.randn(features, features, dtype=torch.float64)
    samples = torch.randn(count, features, dtype=torch.float64) @ mixing
    inputs = torch.cat([samples, samples.new_ones(count, 1)], 1)
    statistics = replace(lobs.LayerStatistics.from_samples(samples, bias=True), inputs_sample=inputs)
    return torch.randn(out, features + 1, dtype=torch.float64), inputs, statistics


def by_cvxpy(program, epsilon, bias=True, zeros=None):
    """The program as it stands in `NetTrim`, in the scaled variables: its value and weights."""
    x, wanted, active = program.samples.numpy(), program.outputs.numpy(), program.active.numpy()
    reached = x @ program.weight.numpy().T
    unknown = cvxpy.Variable(tuple(program.weight.shape))
    outputs = x @ unknown.T
    matched = cvxpy.norm(cvxpy.multiply(outputs - wanted, active.astype(float)), "fro")
    constraints = [matched <= epsilon * np.linalg.norm(wanted * active)]
    if not active.all():
        constraints.append(cvxpy.multiply(outputs - np.maximum(reached, 0), (~active).astype(float)) <= 0)
    if zeros is not None:
        constraints.append(cvxpy.multiply(unknown, zeros.astype(float)) == 0)
    features = unknown.shape[1] - bias
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.abs(unknown[:, :features]))), constraints)
    problem.solve()
    return problem.value, unknown.value


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.4])
def test_small_programs_agree_with_cvxpy(relu, epsilon):
    weight, inputs, _ = layer()
    program = Program(weight, inputs, bias=True, relu=relu)
    ours = program.solve(epsilon, iterations=5000, tolerance=1e-6).sparse
    value, theirs = by_cvxpy(program, epsilon)

    wanted, active = program.outputs.numpy(), program.active.numpy()
    assert float(ours[:, :-1].abs().sum()) == pytest.approx(value, rel=1e-3)
    produced = program.samples.numpy() @ ours.numpy().T
    assert np.linalg.norm((produced - wanted) * active) <= (epsilon + 1e-3) * np.linalg.norm(wanted * active)
    if relu:
        assert (produced * ~active).max() <= 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(ours.numpy()[:, :-1], theirs[:, :-1], atol=2e-2 * np.abs(theirs).max())


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("more", [1.05, 2.0])
def test_the_cascade_agrees_with_cvxpy(relu, more):
    """Other targets than the weight's own outputs: active ones it misses, inactive ones it turns on."""
    weight, inputs, _ = layer()
    targets = inputs @ (weight + 0.3 * torch.randn_like(weight)).T + 0.1 * torch.randn(len(inputs), 3)
    program = Program(weight, inputs, bias=True, relu=relu, targets=targets)
    torch.testing.assert_close(program.active, targets > 0 if relu else torch.ones_like(targets, dtype=torch.bool))
    missed = ((inputs @ weight.T - targets) * program.active).norm() / (targets * program.active).norm()
    assert program.least == pytest.approx(float(missed))
    assert not relu or (program.reached[~program.active] > 0).any()
    epsilon = more * program.least
    ours = program.solve(epsilon, iterations=20000, tolerance=1e-7).sparse
    value, theirs = by_cvxpy(program, epsilon)
    assert float(ours[:, :-1].abs().sum()) == pytest.approx(value, rel=1e-3)
    produced = program.samples @ ours.T
    assert program.mismatch(produced) <= epsilon * (1 + 1e-3)
    assert (produced <= program.ceiling + 1e-3 * program.outputs.abs().max()).all()
    np.testing.assert_allclose(ours.numpy()[:, :-1], theirs[:, :-1], atol=2e-2 * np.abs(theirs).max())
    lowest = program.solve(0.0, iterations=2000, tolerance=1e-6).sparse
    torch.testing.assert_close(lowest, program.solve(program.least, iterations=2000, tolerance=1e-6).sparse)


@pytest.mark.parametrize("relu", [True, False])
def test_from_the_largest_epsilon_on_no_weight_is_left(relu):
    weight, inputs, _ = layer()
    targets = inputs @ weight.T + 1
    program = Program(weight, inputs, bias=True, relu=relu, targets=targets)
    empty, epsilon = program.emptied()
    assert not empty[:, :-1].any()
    assert program.mismatch(program.samples @ empty.T) == pytest.approx(epsilon)
    assert (program.samples @ empty.T <= program.ceiling + 1e-12).all()
    assert by_cvxpy(program, epsilon * 1.01)[0] == pytest.approx(0, abs=1e-3)
    assert by_cvxpy(program, epsilon * 0.99)[0] > 1e-3


def wide_layer():
    """More weights than a curve is measured at one by one, and inputs that the samples never show."""
    weight, inputs, statistics = layer(seed=1, count=150, features=30, out=20)
    inputs[:, :4] = 0
    moment = inputs.T @ inputs / len(inputs)
    return weight, replace(statistics, second_moment=moment, inputs_sample=inputs)


def test_the_curve_comes_from_one_grid_of_epsilons(monkeypatch):
    weight, statistics = wide_layer()
    solved = []
    solve = Program.solve
    monkeypatch.setattr(Program, "solve", lambda self, *args: solved.append(args[0]) or solve(self, *args))
    path = make("net_trim")(weight, statistics)
    assert not solved, "nothing is solved before it is asked for"
    counts = path.solved_counts()
    assert len(solved) == KNOTS
    assert counts[0] == 0
    assert counts[-1] == path.total == 600
    assert counts == sorted(set(counts))
    assert len(counts) > KNOTS // 2
    knots, errors = path.curve_points()
    assert knots.tolist() == counts
    measured = [path.measured_error(path.at(count)[0]) for count in counts]
    assert len(solved) == KNOTS, "a knot's count takes no new program"
    torch.testing.assert_close(errors, torch.tensor(measured, dtype=torch.float64).cummax(0).values)
    for count in counts:
        pruned, mask = path.at(count)
        assert int((~mask).sum()) == count
        assert count == 0 or int((pruned[:, :-1] == 0).sum()) == count, "the solution has just these zeros"

    left, right = max(pairwise(counts), key=lambda pair: pair[1] - pair[0])
    between = (left + right) // 2
    pruned, mask = path.at(between)
    assert KNOTS < len(solved) <= KNOTS + 6
    assert min(solved[:KNOTS]) < solved[-1] < max(solved[:KNOTS]) or right == path.total
    assert int((~mask).sum()) == between
    assert int((pruned[:, :-1] != 0).sum()) <= path.total - between
    assert not pruned[:, :4].any(), "inputs that are always zero need no weights"
    path.at(counts[3] + 1)
    assert torch.equal(path.at(between)[0], pruned), "a count's answer depends on the counts asked for before"


def test_all_counts_of_a_small_layer_are_measured():
    weight, _, statistics = layer()
    path = make("net_trim")(weight, statistics)
    assert path.solved_counts() is None
    assert len(path.curve_points()[0]) == path.total + 1
    assert make("exact_obs")(weight, statistics).solved_counts() is None


def test_targets_make_the_path_a_cascade():
    weight, statistics = wide_layer()
    targets = statistics.inputs_sample @ weight.T
    parallel = make("net_trim")(weight, statistics)
    same = make("net_trim")(weight, replace(statistics, target_sample=targets))
    torch.testing.assert_close(same.at(300)[0], parallel.at(300)[0])
    other = make("net_trim")(weight, replace(statistics, target_sample=targets + torch.randn_like(targets)))
    counts = other.solved_counts()
    assert counts[-1] == other.total
    pruned, mask = other.at(300)
    assert int((~mask).sum()) == 300
    assert not torch.allclose(pruned, parallel.at(300)[0])
    for count in (counts[2], 300, 600):
        assert torch.isfinite(other.at(count)[0]).all()


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


def test_epsilons_that_are_all_the_same():
    """A weight that misses its targets by more than none at all has a grid of one epsilon; its solutions are alike."""
    torch.manual_seed(19)
    weight, inputs, statistics = layer(seed=19)
    path = make("net_trim", iterations=2)(
        weight, replace(statistics, target_sample=torch.randn(len(inputs), 3).double())
    )
    assert path.at(0)[1].all()
    for count in range(path.total + 1):
        assert int((~path.at(count)[1]).sum()) == count


def test_a_count_below_two_solutions_that_are_alike():
    weight, inputs, statistics = layer()
    grid = _Grid(weight, inputs, statistics, NetTrim(iterations=20))
    first, second = (grid._solve(0.05, None) for _ in range(2))
    grid.solutions = [first, second, grid.solutions[-1]]
    assert first.nonzeros == second.nonzeros > 6
    assert grid.weight(6)[:, :-1].count_nonzero() >= 6


@pytest.mark.parametrize("relu", [True, False])
def test_removed_weights_stay_out_of_the_program(relu):
    weight, inputs, _ = layer()
    weight[:, :-1][torch.rand(3, 6) < 0.4] = 0.0
    program = Program(weight, inputs, bias=True, relu=relu)
    ours = program.solve(0.1, iterations=5000, tolerance=1e-6).sparse
    assert not ours[:, :-1][weight[:, :-1] == 0].any()
    value, _ = by_cvxpy(program, 0.1, zeros=(weight == 0).numpy())
    assert float(ours[:, :-1].abs().sum()) == pytest.approx(value, rel=1e-3)
    assert value > by_cvxpy(program, 0.1)[0]


def test_missing_samples_are_named():
    with pytest.raises(ValueError, match=r"net_trim needs raw inputs: collect_statistics\(.*keep_samples"):
        make("net_trim")(torch.randn(3, 4), lobs.LayerStatistics.from_samples(torch.randn(9, 4)))
