"""The pruning path: counts, curves, tolerances and budgets, for paths that are nested and for paths that are not."""

import torch

import lobs
from lobs.solvers import make


def test_the_sensitivity_rule_stops_at_the_first_weight_above():
    """Along an exact path L_q is not monotone: what leaves after a weight that is too sensitive does not count."""
    torch.manual_seed(0)
    samples = torch.randn(60, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    path = make("exact_obs")(torch.randn(6, 8, dtype=torch.float64), lobs.LayerStatistics.from_samples(samples))
    in_order = path.sensitivities.flatten()[path.rank.flatten().argsort()].sqrt()
    assert (in_order.diff() < 0).any(), "the example shows nothing"
    for tolerance in in_order.tolist():
        count = path.within(tolerance, rule="sensitivity")
        assert (in_order[:count] <= tolerance).all()
        assert count == path.total or in_order[count] > tolerance
