"""What is zero when a network comes was removed before: no method, schedule or repair brings it back."""

import pytest
import torch
from torch import nn

import lobs
from lobs.layers import prunable_layers
from lobs.registry import ALLOCATIONS, METHODS

torch.manual_seed(0)
X = torch.randn(96, 4, 5, 5)
BATCHES = [(x, torch.arange(len(x)) % 4) for x in X.split(32)]
OPTIONS = {"net_trim": {"iterations": 20}}
EVERYTHING = {"correct": "both", "refit": 10}


def pruned_before(norm=True):
    """A network with scattered zeros, a unit that is gone with its bias and one of which the bias is left."""
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(8)] if norm else []
    layers = [nn.Conv2d(4, 8, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 4)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for module in prunable_layers(model).values():
            module.weight *= torch.rand_like(module.weight) < 0.6
        model[0].weight[2] = model[-3].weight[3] = model[-3].bias[3] = 0
    return model


def check(method, **asked):
    model = pruned_before(norm=method != "obd")
    layers = prunable_layers(model)
    zeros = {name: module.weight == 0 for name, module in layers.items()}
    statistics = lobs.collect_statistics(
        model,
        BATCHES,
        loss="cross_entropy" if method == "obd" else None,
        keep_samples=40 if method == "net_trim" else 0,
    )
    options = OPTIONS.get(method, {}) | asked.pop("options", {})
    result = lobs.prune(model, statistics, lobs.solvers.make(method, **options), batches=BATCHES, **asked)
    for name, module in prunable_layers(result.model).items():
        assert not module.weight[zeros[name]].any(), name
        assert not (result.masks[name] & zeros[name]).any(), name
        assert result.masks[name].any(), name
    assert result.model[-3].bias[3] == 0


@pytest.mark.parametrize("method", METHODS)
def test_one_shot(method):
    check(method, density=0.3, **EVERYTHING)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("apoz", "obd")])
def test_front_to_back_in_stages(method):
    check(method, density=0.25, sequential=True, stages=2, **EVERYTHING)


def test_the_other_two_ways():  # whole units go at once, and the loss's curvature is measured once
    check("apoz", density=0.25, stages=2)
    check("obd", density=0.3, sequential=True)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_allocations(allocation):
    check("exact_obs", density=0.3, allocation=allocation)


@pytest.mark.parametrize("budget", [{"density": 0.9}, {"tolerance": 0.05}, {"flops": 0.3}, {"size": 3000}])
def test_budgets(budget):
    check("exact_obs", **budget)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("exact_obs", {"pattern": "2:4"}),
        ("sparsegpt", {"pattern": "2:4"}),
        ("exact_obs", {"block": 2}),
        ("exact_obs", {"refine": True}),
        ("exact_obs", {"group_size": 6}),
        ("lobs", {"resolve": True}),
        ("lobs", {"alpha": 1e5}),
    ],
)
def test_options(method, options):
    check(method, density=0.5, options=options)
