"""The paper's algorithm against its definition, autograd and constrained least squares."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lobs
from helpers.oracles import constrained_least_squares
from helpers.solver_layers import layer
from lobs.solvers import make


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
    absolute = damping * float(psi.diagonal()[: statistics.features].mean())
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


def test_a_layer_too_large_for_the_fixed_inverse_says_what_to_use(monkeypatch):
    weight, _, statistics = layer()
    monkeypatch.setattr("lobs.solvers.lobs.MOST_PRODUCTS", 1)
    with pytest.raises(ValueError, match=r"3 x 8 weights is too large .* use resolve=True"):
        make("lobs")(weight, statistics).at(3)
    make("lobs", resolve=True)(weight, statistics).at(3)
