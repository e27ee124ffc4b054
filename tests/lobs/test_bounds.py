"""Lemma 3.1 and Theorem 3.2: the measured error stays below the bound, whatever the network and the pruning."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.bounds import not_covered


def root_mean_square(difference):
    """||.||_F / sqrt(n) over the batch."""
    return float(difference.detach().flatten(1).square().sum(1).mean().sqrt())


def disturb(model, amount):
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for module in pruned.modules():
            if hasattr(module, "weight"):
                keep = torch.rand_like(module.weight) > amount
                module.weight.mul_(keep).add_(0.1 * amount * torch.randn_like(module.weight))
                if module.bias is not None:
                    module.bias.add_(0.1 * amount * torch.randn_like(module.bias))
    return pruned


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    amount=st.floats(0, 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_theorem_on_random_networks(widths, amount, scale, bias, seed):
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double()
    inputs = torch.randn(50, widths[0], dtype=torch.float64) * scale
    statistics = lobs.collect_statistics(model, [inputs])
    pruned = disturb(model, amount)
    bound = lobs.error_bound(model, pruned, statistics)
    measured = root_mean_square(pruned(inputs) - model(inputs))
    assert measured <= bound.total * (1 + 1e-6) + 1e-12
    assert all(term >= 0 for term in bound.layers.values())


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    amount=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_theorem_on_convolutions(kernel, stride, padding, dilation, groups, amount, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).double()
    images = torch.randn(20, 2, 12, 12, dtype=torch.float64)
    model(images)
    pruned = disturb(model, amount)
    bound = lobs.error_bound(model, pruned, lobs.collect_statistics(model, [images]))
    assert root_mean_square(pruned(images) - model(images)) <= bound.total * (1 + 1e-6) + 1e-12


@settings(max_examples=40, deadline=None)
@given(amount=st.floats(0, 1), seed=st.integers(0, 1000))
def test_lemma(amount, seed):
    torch.manual_seed(seed)
    weight = torch.randn(4, 6, dtype=torch.float64)
    pruned = weight * (torch.rand_like(weight) > amount) + 0.1 * torch.randn_like(weight)
    inputs = torch.randn(30, 6, dtype=torch.float64)
    statistics = lobs.LayerStatistics.from_samples(inputs)
    after_relu = root_mean_square(torch.relu(inputs @ pruned.T) - torch.relu(inputs @ weight.T))
    before_relu = root_mean_square((inputs @ pruned.T) - (inputs @ weight.T))
    bound = lobs.layer_error_bound(weight, pruned, statistics)
    assert after_relu <= bound * (1 + 1e-9)
    assert bound == pytest.approx(before_relu, rel=1e-9, abs=1e-12)


def test_one_layer_pruned_gives_its_own_error_times_the_norms_behind_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    inputs = torch.randn(40, 5, dtype=torch.float64)
    statistics = lobs.collect_statistics(model, [inputs])
    result = lobs.prune(model, statistics, "magnitude", density=0.5, layers=["0"])
    bound = lobs.error_bound(model, result.model, statistics)
    error = root_mean_square(result.model[0](inputs) - model[0](inputs))
    norms = float((model[2].weight.norm() * model[4].weight.norm()).detach())
    assert bound.layers == pytest.approx({"0": error * norms, "2": 0.0, "4": 0.0})


def test_different_networks_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    statistics = lobs.collect_statistics(model, [torch.randn(3, 2)])
    with pytest.raises(ValueError, match="different layers: 1"):
        lobs.error_bound(model, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), statistics)
    other = lobs.collect_statistics(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), [torch.randn(3, 2)])
    with pytest.raises(ValueError, match="the statistics hold layer '1'; the networks have 0"):
        lobs.error_bound(model, model, other)
    wide = lobs.collect_statistics(nn.Sequential(nn.Linear(3, 2)), [torch.randn(3, 3)])
    with pytest.raises(ValueError, match="layer '0'"):
        lobs.error_bound(model, model, wide)


SHARED = nn.Linear(8, 8)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), "BatchNorm1d '1'"),
        (nn.Sequential(Residual(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4)), "a forward function of its own"),
        (nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.MaxPool1d(3, 2), nn.Flatten()), "MaxPool1d '2'"),
        (
            nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.AvgPool1d(2, 2, 1, count_include_pad=False)),
            "1d '2'",
        ),
        (
            nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 1), nn.AvgPool2d(2, divisor_override=1)),
            "Pool2d '2'",
        ),
        (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), "GELU '1'"),
        (nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(2.0), nn.Linear(8, 4)), "LeakyReLU '1'"),
        (nn.Sequential(SHARED, nn.ReLU(), SHARED), "Linear '2' is more than a chain of layers, each called once"),
    ],
)
def test_what_the_theorem_does_not_cover_is_said(network, said):
    network.eval()
    batches = [torch.randn(40, 8)]
    statistics = lobs.collect_statistics(network, batches)
    result = lobs.prune(network, statistics, "magnitude", density=0.5)
    with pytest.warns(UserWarning, match="the error bound is none here"):
        bound = lobs.error_bound(network, result.model, statistics)
    assert said in bound.caveat


def test_a_chain_has_no_caveat(recwarn):
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.LeakyReLU(), nn.MaxPool1d(2), nn.Flatten()
    ).eval()
    statistics = lobs.collect_statistics(network, [torch.randn(40, 8)])
    result = lobs.prune(network, statistics, "magnitude", density=0.5)
    assert lobs.error_bound(network, result.model, statistics).caveat is None
    assert not [warning for warning in recwarn if "bound" in str(warning.message)]


CONTRACTING = [
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(1.0), nn.ELU(), nn.ELU(0.5), nn.CELU(), nn.Hardtanh()),
    *(nn.Tanh(), nn.Sigmoid(), nn.Softsign(), nn.Softmax(1), nn.LogSigmoid(), nn.Softplus(), nn.Softshrink()),
    *(nn.Identity(), nn.Flatten(), nn.Unflatten(1, (2, 1)), nn.MaxPool2d(2), nn.MaxPool2d(2, 3), nn.AvgPool2d(3, 1, 1)),
    *(nn.MaxPool2d((1, 2), (1, 3)), nn.AvgPool2d((2, 3), 1)),
    *(nn.LeakyReLU(-1.0), nn.ELU(-0.5), nn.CELU(2.0), nn.CELU(0.1), nn.Softplus(3.0)),
]
WIDENING = [
    *(nn.ELU(2.0), nn.LeakyReLU(1.5), nn.MaxPool2d(2, 1), nn.MaxPool2d((1, 2), 1), nn.MaxPool2d((2, 1), 1)),
    *(nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, dilation=(1, 2)), nn.AvgPool2d(2, divisor_override=1)),
    *(nn.LeakyReLU(-3.0), nn.ELU(-3.0), nn.CELU(-1.0), nn.Softplus(threshold=-5)),
]


def stretch(module):
    """By how much a map brings two points apart at most, of many and of points that differ in a place alone."""
    torch.manual_seed(0)
    x = torch.randn(400, 2, 6, 6, dtype=torch.float64)
    ends = x + 1e-3 * torch.randn_like(x), x + torch.randn_like(x), x.roll(1, 0), x.clone()
    places = torch.randint(0, x[0].numel(), (400, 1))
    ends[3].flatten(1).scatter_(1, places, 5.0)
    far = [(module(x) - module(end)).flatten(1).norm(dim=1) / (x - end).flatten(1).norm(dim=1) for end in ends]
    return float(torch.cat(far).max())


@pytest.mark.parametrize("module", CONTRACTING, ids=str)
def test_maps_that_bring_no_points_apart_are_covered(module):
    assert stretch(module) <= 1 + 1e-9
    assert not_covered(nn.Sequential(nn.Linear(6, 6), module)) is None


@pytest.mark.parametrize("module", WIDENING, ids=str)
def test_maps_that_bring_points_apart_are_not_covered(module):
    assert stretch(module) > 1.001
    said = f"{type(module).__name__} '1' is more than a chain of layers, each called once, and 1-Lipschitz maps"
    assert not_covered(nn.Sequential(nn.Linear(6, 6), module)) == said


def test_a_network_that_is_no_sequence_is_named_by_its_class():
    assert not_covered(Residual(nn.Linear(8, 8))) == "Residual has a forward function of its own"
    attention = nn.MultiheadAttention(8, 2)
    assert not_covered(attention).startswith("MultiheadAttention is more than a chain")
    assert not_covered(nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.GELU()))).startswith("GELU '0.1' is more")


def test_networks_of_fewer_layers_or_other_sizes_are_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    statistics = lobs.collect_statistics(model, [torch.randn(5, 3)])
    with pytest.raises(ValueError, match="different layers: 1"):
        lobs.error_bound(model, model[:1], statistics)
    with pytest.raises(ValueError, match="layer '0'"):
        lobs.error_bound(model, nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), statistics)
    with pytest.raises(ValueError, match="layer '0'"):
        lobs.error_bound(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), model, statistics)


def test_a_convolutions_term_is_of_all_positions_and_its_norm_counts_for_every_window():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Conv1d(3, 2, 3, stride=2, bias=False), nn.Flatten(), nn.Linear(6, 2)
    ).double()
    inputs = torch.randn(40, 1, 8, dtype=torch.float64)
    statistics = lobs.collect_statistics(model, [inputs])
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight[:, :, 0] = 0
        pruned[2].weight[0] = 0
    bound = lobs.error_bound(model, pruned, statistics)
    first = root_mean_square(pruned[0](inputs) - model[0](inputs))
    hidden = model[:2](inputs)
    second = root_mean_square(pruned[2](hidden) - model[2](hidden))
    # Of a kernel of 3 by steps of 2, an input stands in 2 windows at most; the last layer's counts once.
    third, last = (float(module.weight.detach().norm()) for module in (pruned[2], pruned[4]))
    assert bound.layers == pytest.approx({"0": first * third * 2**0.5 * last, "2": second * last, "4": 0.0})
    assert bound.total == pytest.approx(sum(bound.layers.values()))


def test_statistics_of_some_layers_leave_the_norms_of_the_others_in_the_terms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    inputs = torch.randn(40, 5, dtype=torch.float64)
    statistics = lobs.collect_statistics(model, [inputs], layers=["2", "0"])
    assert set(statistics) == {"0", "2"}
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight[:, 1] = 0
        pruned[4].weight[0] = 0
    bound = lobs.error_bound(model, pruned, statistics)
    error = root_mean_square(pruned[0](inputs) - model[0](inputs))
    norms = float((pruned[2].weight.norm() * pruned[4].weight.norm()).detach())
    assert bound.layers == pytest.approx({"0": error * norms, "2": 0.0})
    assert list(bound.layers) == list(statistics)


def test_statistics_of_another_network_of_the_same_sizes_are_refused():
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(2))
    statistics = lobs.collect_statistics(other, [torch.randn(5, 3)])
    with pytest.raises(ValueError, match="collected from another network, or from this one before it changed"):
        lobs.error_bound(model, model, statistics)
