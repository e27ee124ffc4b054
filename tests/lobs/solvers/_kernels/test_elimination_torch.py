"""The batched elimination against the compiled one, in one batch and in many."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from helpers import oracles
from helpers.solver_layers import layers, make_layer
from lobs.solvers import exact_obs
from lobs.solvers._kernels import elimination_numba, elimination_torch
from lobs.solvers.hessian import damp


@settings(max_examples=25, deadline=None)
@given(
    layer=layers,
    pattern=st.sampled_from([None, "2:4", "1:4", "0:4", "3:4"]),
    precision=st.sampled_from(["float64", "float32"]),
)
def test_compiled_and_batched_versions_agree(layer, pattern, precision):
    layer["features"] = -(-layer["features"] // 4) * 4
    weight, _, statistics = make_layer(**layer)
    hessian = damp(statistics, 1e-2)
    features = statistics.features
    _, _, group, quota = exact_obs._dead_first(weight, hessian, pattern)
    group = torch.cat([group, group.new_full((int(statistics.bias),), -1)])
    if not (group >= 0).any():
        return
    scaled = weight[:, hessian.alive] * hessian.scale
    scaled = scaled / scaled.abs().amax(1, keepdim=True)
    none_gone = torch.zeros_like(scaled, dtype=torch.bool)
    arguments = scaled, none_gone, hessian.inverse, group, quota, exact_obs.PRECISIONS[precision]
    order, costs = elimination_numba.eliminate(*arguments)
    batched_order, batched_costs = elimination_torch.eliminate(*arguments)
    assert order.shape == batched_order.shape == (len(weight), int(quota.sum()))
    assert features >= order.shape[1]
    if precision == "float64":
        assert torch.equal(order, batched_order)
    tolerance = {"float64": 1e-7, "float32": 0.01}[precision]
    torch.testing.assert_close(costs.sum(1), batched_costs.sum(1), rtol=tolerance, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(layer=layers, pattern=st.sampled_from([None, "2:4", "1:4", "3:4"]), share=st.sampled_from([0.2, 0.6, 0.9]))
def test_both_versions_leave_zeros_out_from_the_start(layer, pattern, share):
    """What is left of a row is eliminated as if its zeros had never been inputs."""
    layer.update(features=-(-layer["features"] // 4) * 4, dead=0, spread=min(layer["spread"], 1.0))
    weight, _, statistics = make_layer(**layer)
    features, hessian = statistics.features, damp(statistics, 1e-2)
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(layer["seed"])) < share
    zeros[:, features:] = False
    scaled = (weight * hessian.scale).masked_fill(zeros, 0.0)
    _, _, group, quota = exact_obs._dead_first(weight, hessian, pattern)
    group = torch.cat([group, group.new_full((int(statistics.bias),), -1)])
    arguments = scaled, zeros, hessian.inverse, group, quota, torch.float64
    (order, costs), (batched, batched_costs) = (f.eliminate(*arguments) for f in (elimination_numba, elimination_torch))
    torch.testing.assert_close(costs, batched_costs, rtol=1e-7, atol=1e-9 * float(costs.max()))
    for row in range(len(weight)):
        kept = (~zeros[row]).nonzero()[:, 0]
        if not len(kept):
            continue
        inverse = torch.linalg.inv(hessian.correlation[kept][:, kept])
        left = quota - torch.bincount(group[:features][zeros[row, :features]], minlength=len(quota))
        alone, own = elimination_torch.eliminate(
            scaled[row : row + 1, kept],
            torch.zeros(1, len(kept), dtype=torch.bool),
            inverse,
            group[kept],
            left.clamp_min(0),
            torch.float64,
        )
        first = order.shape[1] - alone.shape[1]
        assert zeros[row, order[row, :first].long()].all()
        assert torch.equal(order[row, first:], kept[alone[0].long()].int())
        assert torch.equal(order[row, first:], batched[row, first:])
        torch.testing.assert_close(costs[row, first:], own[0], rtol=1e-7, atol=1e-9 * float(costs.max()))


def test_batched_version_in_many_batches_with_compaction(monkeypatch):
    weight, inputs = oracles.mnist_like(rows=7, features=70)
    statistics = lobs.LayerStatistics.from_samples(inputs, bias=True)
    hessian = damp(statistics)
    _, _, group, quota = exact_obs._dead_first(weight, hessian, None)
    group = torch.cat([group, group.new_full((1,), -1)])
    scaled = weight[:, hessian.alive] * hessian.scale
    none_gone = torch.zeros_like(scaled, dtype=torch.bool)
    arguments = scaled, none_gone, hessian.inverse, group, quota, torch.float64
    expected = elimination_numba.eliminate(*arguments)
    monkeypatch.setitem(elimination_torch.BATCH_BYTES, "cpu", 3 * 64**2 * 8)
    actual = elimination_torch.eliminate(*arguments)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-7, atol=1e-12)
    monkeypatch.setitem(elimination_torch.BATCH_BYTES, "cpu", 1)  # one row at a time
    again = elimination_torch.eliminate(*arguments)
    assert torch.equal(again[0], expected[0])
