"""Whole units: who reads them and what a budget leaves of them, against what the layers themselves compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.chains import IMAGES, fed, grouped_chain
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
