"""The paper's algorithm against its definition, autograd and constrained least squares."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lobs
from lobs.solvers import make
from lobs.solvers.hessian import damp, recursive_inverse
from lobs.solvers.least_squares import solve_on_support


def layer(seed=0, count=50, features=7, out=3, bias=True):
    torch.manual_seed(seed)
    samples = torch.randn(count, features, dtype=torch.float64) @ torch.randn(features, features, dtype=torch.float64)
    inputs = torch.cat([samples, torch.ones(count, 1, dtype=torch.float64)], 1) if bias else samples
    weight = torch.randn(out, features + bias, dtype=torch.float64)
    return weight, inputs, lobs.LayerStatistics.from_samples(samples, bias)


def constrained_least_squares(weight, inputs, kept, damping):
    """Row by row, by lstsq on the samples, with sqrt(n * damping) (w' - w) as further equations."""
    count = len(inputs)
    root = (count * damping) ** 0.5
    result = torch.zeros_like(weight)
    for row in range(len(weight)):
        k = kept[row]
        equations = torch.cat([inputs[:, k], root * torch.eye(weight.shape[1], dtype=weight.dtype)[:, k]])
        target = torch.cat([inputs @ weight[row], root * weight[row]])
        result[row, k] = torch.linalg.lstsq(equations, target).solution
    return result


def test_figure_1_the_hessian_has_identical_blocks():
    """The Hessian of E in vec(W) is block diagonal with one block 2 Psi per output unit."""
    weight, inputs, statistics = layer(out=3, features=4)

    def error(theta):
        return ((inputs @ (theta.reshape(weight.shape) - weight).T).square().sum()) / len(inputs)

    hessian = torch.autograd.functional.hessian(error, weight.flatten().clone())
    expected = torch.block_diag(*[2 * statistics.second_moment] * 3)
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_one_step_is_the_constrained_least_squares_solution(bias):
    weight, inputs, statistics = layer(bias=bias)
    path = make("lobs", damping=0.0)(weight, statistics)
    pruned, mask = path.at(1)
    row, column = (~mask).nonzero()[0].tolist()
    torch.testing.assert_close(pruned, constrained_least_squares(weight, inputs, mask, 0.0))
    # L_q is half of what the removal costs (E carries no factor 1/2), and the smallest of all single removals
    assert 2 * path.sensitivities[row, column] == pytest.approx(path.measured_error(pruned))
    costs = []
    for r in range(weight.shape[0]):
        for c in range(statistics.features):
            kept = torch.ones_like(mask)
            kept[r, c] = False
            costs.append(path.measured_error(constrained_least_squares(weight, inputs, kept, 0.0)))
    assert path.measured_error(pruned) == pytest.approx(min(costs))
    torch.testing.assert_close(2 * path.sensitivities.flatten(), torch.tensor(costs, dtype=torch.float64))


@pytest.mark.parametrize("block", [1, 3, 96])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), bias=st.booleans(), share=st.floats(0, 1), damping=st.sampled_from([0.0, 1e-3, 1.0]))
def test_the_triangular_solve_is_the_sequential_algorithm(monkeypatch, block, seed, bias, share, damping):
    weight, _, statistics = layer(seed, bias=bias)
    path = make("lobs", damping=damping)(weight, statistics)
    monkeypatch.setattr("lobs.solvers.lobs.BLOCK", block)
    count = round(share * path.total)
    psi = statistics.second_moment
    absolute = damping * float(psi.diagonal().mean())
    inverse = torch.linalg.inv(psi + absolute * torch.eye(len(psi), dtype=psi.dtype))
    features = statistics.features
    scores = weight[:, :features] ** 2 / (2 * inverse.diagonal()[:features])
    work, kept = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for flat in scores.flatten().argsort(stable=True)[:count].tolist():
        row, column = divmod(flat, features)
        work[row] -= work[row, column] / inverse[column, column] * inverse[column]
        kept[row, column] = False
        work[row] *= kept[row]
    pruned, mask = path.at(count)
    assert torch.equal(mask, kept)
    torch.testing.assert_close(pruned, work, rtol=1e-7, atol=1e-9)
    assert path.damping == pytest.approx(absolute)


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


def test_resolve_is_never_worse_than_the_sequential_weights():
    weight, _, statistics = layer(seed=5, features=30, count=400, out=6)
    sequential, resolved = make("lobs")(weight, statistics), make("lobs", resolve=True)(weight, statistics)
    gains = []
    for count in range(0, sequential.total + 1, 9):
        a, mask_a = sequential.at(count)
        b, mask_b = resolved.at(count)
        assert torch.equal(mask_a, mask_b)
        gains.append(sequential.measured_error(a) - resolved.measured_error(b))
    assert min(gains) >= -1e-9
    assert max(gains) > 0.01


@pytest.mark.parametrize("alpha", [1e4, 1e8])
def test_the_papers_recursion_is_the_damped_inverse(alpha):
    _, inputs, statistics = layer(count=4)  # fewer samples than inputs: singular without damping
    hessian = damp(statistics, alpha=alpha)
    inverse = hessian.inverse / torch.outer(hessian.scale, hessian.scale)
    torch.testing.assert_close(recursive_inverse(inputs, alpha), inverse, rtol=1e-4, atol=1e-4 * alpha)


def test_the_sensitivity_rule_is_algorithm_1s():
    weight, _, statistics = layer()
    path = make("lobs")(weight, statistics)
    roots = path.sensitivities.sqrt().flatten().sort().values
    epsilon = float(roots[5:7].mean())
    assert path.within(epsilon, rule="sensitivity") == 6
    assert path.sensitivity_threshold(6) == pytest.approx(float(roots[5]) ** 2)
    assert path.sensitivity_threshold(0) == 0.0
    with pytest.raises(ValueError, match="no sensitivities"):
        make("magnitude")(weight, statistics).within(1.0, rule="sensitivity")


def test_singular_statistics_raise_or_are_damped():
    weight, inputs, _ = layer(bias=False)
    inputs = torch.cat([inputs[:, :3], inputs[:, :3]], 1)
    statistics = lobs.LayerStatistics.from_samples(inputs)
    with pytest.raises(lobs.SingularStatisticsError, match=r"singular in float64 .* use a larger damping"):
        make("lobs", damping=0.0)(weight[:, :6], statistics)
    path = make("lobs", resolve=True)(weight[:, :6], statistics)
    # every input has a twin, so any weight can go for (almost) nothing, as long as it is the first
    assert path.layer_error(1) < 1e-3 * path.layer_error(path.total)
    for count in range(path.total + 1):
        assert torch.isfinite(path.at(count)[0]).all()


def test_dead_inputs_cost_nothing_and_leave_first():
    weight, inputs, _ = layer(bias=True)
    samples = inputs[:, :-1].clone()
    samples[:, [2, 5]] = 0
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    for damping in (0.0, 1e-3):
        path = make("lobs", damping=damping)(weight, statistics)
        pruned, mask = path.at(6)
        assert not mask[:, [2, 5]].any() or damping > 0
        if damping == 0.0:
            assert path.layer_error(6) == pytest.approx(0, abs=1e-20)
            torch.testing.assert_close(pruned[mask], weight[mask])


def test_wrong_damping_is_named():
    weight, _, statistics = layer()
    with pytest.raises(ValueError, match=r"damping must be >= 0.*got -1"):
        make("lobs", damping=-1)(weight, statistics)
    with pytest.raises(ValueError, match=r"alpha must be > 0.*got 0"):
        make("lobs", alpha=0)(weight, statistics)


def test_a_layer_too_large_for_the_fixed_inverse_says_what_to_use(monkeypatch):
    weight, _, statistics = layer()
    monkeypatch.setattr("lobs.solvers.lobs.MOST_PRODUCTS", 1)
    with pytest.raises(ValueError, match=r"3 x 8 weights is too large .* use resolve=True"):
        make("lobs")(weight, statistics).at(3)
    make("lobs", resolve=True)(weight, statistics).at(3)
