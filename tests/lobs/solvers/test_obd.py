"""OBD's order against its saliencies, and what it says without a curvature."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from lobs.solvers import make


def test_the_order_is_that_of_the_saliencies_of_the_training_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,))
    statistics = lobs.collect_statistics(model, [(inputs, targets)], loss="cross_entropy")

    def loss(weight):
        outputs = torch.func.functional_call(model, {"0.weight": weight}, inputs)
        return nn.functional.cross_entropy(outputs, targets)

    weight = model[0].weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(30, 30).diagonal()
    saliency = hessian * weight.flatten() ** 2 / 2
    result = lobs.prune(model, statistics, "obd", density=0.5, layers=["0"])
    expected = saliency.argsort()[:15]
    assert set((~result.masks["0"]).flatten().nonzero().flatten().tolist()) == set(expected.tolist())


def test_a_missing_or_foreign_curvature_is_named():
    statistics = lobs.LayerStatistics.from_samples(torch.randn(9, 4))
    with pytest.raises(ValueError, match=r"obd needs the loss's curvature: collect_statistics\(.*loss="):
        make("obd")(torch.randn(3, 4), statistics)
    statistics = replace(statistics, loss_curvature=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"\(2, 4\) does not fit a weight \(3, 4\)"):
        make("obd")(torch.randn(3, 4), statistics)


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.fc2(torch.relu(self.fc1(inputs)))


@pytest.mark.parametrize("model", [Foreign(), nn.Sequential(nn.Linear(4, 3), nn.Hardswish(), nn.Linear(3, 2))])
def test_a_network_that_backpack_cannot_follow_is_refused_by_its_name(model):
    batch = (torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"needs a network that is an nn.Sequential .*(Foreign|Hardswish)"):
        lobs.collect_statistics(model, [batch], loss="cross_entropy")
