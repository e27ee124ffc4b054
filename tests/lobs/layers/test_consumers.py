"""Whole units: who reads them and what a budget leaves of them, against what the layers themselves compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.chains import IMAGES, fed, grouped_chain
from helpers.networks import net
from lobs.layers.consumers import consumers_of, drop_columns
from lobs.layers.matrix import set_weight_matrix, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.layers.parts import parts_of


def test_a_unit_feeds_the_inputs_that_move_with_it():
    modules = prunable_layers(grouped_chain())
    links = consumers_of(modules)
    assert {name: (link.reader, link.groups) for name, link in links.items()} == {
        "0": ("2", 2),
        "2": ("4", 6),
        "4": ("8", 1),
        "8": ("10", 1),
    }
    for name, link in links.items():
        units = len(modules[name].weight)
        for unit in range(units):
            alone = torch.arange(units) == unit
            assert torch.equal(link.inputs(alone), fed(modules[link.reader], units, unit)), (name, unit)


@pytest.mark.parametrize(
    ("reader", "inputs"),
    [(nn.Conv2d(5, 3, 1), 5), (nn.Linear(9, 3), 9), (nn.Conv2d(8, 8, 1, groups=4), 2)],
    ids=["other channels", "no whole maps", "other groups"],
)
def test_layers_that_do_not_fit_are_refused(reader, inputs):
    message = rf"layer 'b' with {inputs} inputs per unit does not simply follow layer 'a' with 4 units: whole units can"
    with pytest.raises(ValueError, match=message):
        consumers_of({"a": nn.Conv2d(2, 4, 3), "b": reader})


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999))
def test_columns_of_dead_units_leave_and_the_network_stays_as_it_is(seed):
    """A unit of which nothing is left, not even its bias, is zero: the weights that read it do nothing."""
    model = grouped_chain()
    modules = prunable_layers(model)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: weight_matrix(module) for name, module in modules.items()}
    masks = {}
    for name, matrix in weights.items():
        masks[name] = torch.rand(matrix.shape, generator=generator) < 0.8
        masks[name][torch.rand(len(matrix), generator=generator) < 0.4] = False
        set_weight_matrix(modules[name], matrix.mul_(masks[name]))
    before = {name: mask.clone() for name, mask in masks.items()}
    expected = model(IMAGES)
    links = consumers_of(modules)
    drop_columns(weights, masks, links)
    for name, matrix in weights.items():
        set_weight_matrix(modules[name], matrix)
    torch.testing.assert_close(model(IMAGES), expected)
    assert torch.equal(masks["0"], before["0"])
    for name, link in links.items():
        reader, found = modules[link.reader], before[link.reader].clone()
        for unit in (~before[name].any(1)).nonzero()[:, 0].tolist():
            for row in range(len(found)):
                features = fed(reader, len(before[name]), unit)[row * link.groups // len(found)].nonzero()[:, 0]
                found[row, features] = False
        assert torch.equal(masks[link.reader], found)
        assert torch.equal(weights[link.reader] != 0, found & (weights[link.reader] != 0))


def test_units_of_a_branching_network_are_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.relu(torch.cat([self.left(x), self.right(x)], 1)))

    model = Branches()
    statistics = lobs.collect_statistics(model, [torch.randn(9, 4)])
    with pytest.raises(ValueError, match=r"'right' with 4 inputs .* does not simply follow layer 'left' with 3 units"):
        lobs.prune(model, statistics, "apoz", density=0.5)


@pytest.mark.parametrize("names", [("fc", "part"), ("part", "fc")])
def test_units_of_parts_and_what_parts_read_are_refused(names):
    modules = {"fc": nn.Linear(8, 8), "part": parts_of(nn.MultiheadAttention(8, 2))["q_proj"]}
    with pytest.raises(ValueError, match=rf"layer '{names[1]}' .* does not simply follow layer '{names[0]}'"):
        consumers_of({name: modules[name] for name in names})


def first_axis_is_time(self, x):
    hidden = torch.relu(self.a(x.transpose(0, 1)) + self.place)
    return self.c(torch.relu(self.b(hidden))).mean(0)


CHAINS = {
    "first axis is time": (first_axis_is_time, (16, 5, 8), None),
    "one input at a time": (
        lambda self, x: self.c(torch.relu(self.b(torch.relu(self.a(x)) + self.place))),
        (1, 8),
        None,
    ),
    "no axis of inputs": (lambda self, x: self.c(torch.sigmoid(self.b(self.a(x) + self.place[0, 0]))), (8,), None),
    "a way around": (
        lambda self, x: self.c(self.b(torch.relu(self.a(x))) + x),
        (20, 8),
        "'c' does not .* follow layer 'b'",
    ),
    "the same, one input at a time": (
        lambda self, x: self.c(torch.relu(self.b(self.a(x)) + x)),
        (1, 8),
        "reads something",
    ),
    "a narrow one": (
        lambda self, x: self.c(self.b(self.a(x)) + 1e-3 * x + 5),
        (20, 8),
        "reads something beside its units",
    ),
}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_what_a_layer_reads_beside_the_units_before_it_is_found(name):
    forward, shape, message = CHAINS[name]
    model = net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3))
    model.place = nn.Parameter(torch.randn(5, 1, 8) if name == "first axis is time" else torch.randn(1, 1, 8))
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, args: module.calls.add_(1) and None)
    batches = [torch.randn(shape) for _ in range(20)]
    plan = lobs.plan(model, lobs.collect_statistics(model, batches), "apoz", batches=batches)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            plan.prune(density=0.5)
        return
    for density in (0.7, 0.5):  # the plan's network has not changed
        assert plan.prune(density=density).density <= density
    assert model.calls == 0


@pytest.mark.parametrize("around", [False, True])
def test_inputs_that_are_whole_numbers_are_told_apart_too(around):
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids, scale):
            given = self.words(ids).mean(1) * scale
            return self.b(torch.relu(self.a(given)) + around * given)

    inputs = [{"ids": torch.arange(80).view(16, 5) % 9, "scale": torch.tensor(2)}]
    if around:
        with pytest.raises(ValueError, match="'b' does not simply follow layer 'a'"):
            lobs.prune(Summed().eval(), batches=inputs, method="apoz", density=0.5)
    else:
        assert lobs.prune(Summed().eval(), batches=inputs, method="apoz", density=0.5).density <= 0.5


def test_a_budget_that_whole_units_miss_is_noted_and_rounding_down_is_not():
    inputs = [torch.randn(99, 8)]
    chain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    missed = lobs.prune(chain, batches=inputs, method="apoz", density=0.3)
    assert f"{missed.density:.4g} of the weights are kept, less than the budget of 0.3" in missed.notes
    for density in (0.05, 0.3, 0.5):
        assert not lobs.prune(chain, batches=inputs, method="lobs", density=density).notes
