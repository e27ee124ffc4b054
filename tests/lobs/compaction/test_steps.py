"""Norms, gates, scales, sums and concatenations: what leaves, and that the numbers stay."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import lobs


def shrunk(model, *shape):
    """Compact a network in float64; its outputs stay on other inputs, too."""
    model.double().eval()
    result = lobs.compact(model, torch.randn(2, *shape).double())
    inputs = torch.randn(3, *shape).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))
    return result


def test_channels_stay_before_a_layer_norm_and_leave_between_two_linears():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 3))
    model[0].weight.data[[1, 4]] = 0.0
    model[2].weight.data[[2, 7]] = 0.0
    model[4].weight.data[:, 3] = 0.0
    result = shrunk(model, 5, 6)
    assert result.layers["0"].removed_units == ()
    assert result.staying == {"0": {"feeds LayerNorm '1', in whose mean and variance it counts": (1, 4)}}
    assert result.layers["2"].removed_units == (2, 3, 7)
    assert result.model[1].normalized_shape == (8,)


def test_a_channel_that_a_layer_norm_makes_constant_goes_into_the_bias_of_what_reads_it():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3))
    model[1].weight.data[2] = 0.0
    model[1].bias.data[2] = 0.7
    model[2].weight.data[4] = 0.0
    model[2].weight.data[4, 2] = 1.0
    assert shrunk(model, 6).layers["2"].removed_units == (4,)


def test_whole_groups_leave_a_group_norm_and_single_channels_stay():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    model[0].weight.data[3:6] = 0.0  # a constant group, with three constants
    model[0].weight.data[7] = 0.0
    model[3].weight.data[:, 9:] = 0.0  # a group that nothing reads
    result = shrunk(model, 3, 4, 4)
    assert result.layers["0"].removed_units == (3, 4, 5, 9, 10, 11)
    assert (result.model[1].num_groups, result.model[1].num_channels) == (2, 6)
    ((reason, units),) = result.staying["0"].items()
    assert "a group" in reason
    assert units == (7,)


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.down, self.up = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        x = torch.relu(self.one(x))
        batch, channels, _, _ = x.size()
        gate = self.up(torch.relu(self.down(x.mean((2, 3))))).sigmoid().view(batch, channels, 1, 1)
        return self.two(x * gate.expand_as(x))


def test_a_channel_leaves_with_its_gate_where_it_is_zero_or_nothing_reads_it():
    model = SqueezeExcitation()
    model.one.weight.data[[1, 2]] = 0.0
    model.one.bias.data[[1, 2]] = torch.tensor([-1.0, 1.0])  # zero and one after ReLU
    model.two.weight.data[:, 5] = 0.0
    model.down.weight.data[:, 5] = 0.0
    result = shrunk(model, 3, 4, 4)
    assert result.layers["one"].removed_units == (1, 5) == result.layers["up"].removed_units
    assert list(result.staying) == ["one"]


def test_torchvisions_gates_are_followed():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), torchvision.ops.SqueezeExcitation(8, 4), nn.Conv2d(8, 2, 1))
    model[1].fc1.weight.data[2] = 0.0
    model[2].weight.data[:, 3] = 0.0
    model[1].fc1.weight.data[:, 3] = 0.0
    result = shrunk(model, 3, 4, 4)
    assert result.removed == {"0": 1, "1.fc1": 1, "1.fc2": 1, "2": 0}


class Block(nn.Module):
    """As in ConvNeXt: a scale per channel, stochastic depth, a sum."""

    def __init__(self, scale=None):
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.randn(6) if scale is None else scale)
        self.places = nn.Parameter(torch.randn(1, 5, 6))
        self.drop = torchvision.ops.StochasticDepth(0.5, "row")

    def forward(self, x):
        x = functional.relu(self.stem(x)) + self.places
        x = x + self.drop(self.scale * self.down(functional.gelu(self.up(x))))
        return self.head(x.mean(1))


def test_scales_and_tables_of_positions_lose_the_channels_that_leave():
    model = Block()
    model.down.weight.data[[1, 3]] = 0.0
    model.stem.weight.data[3] = 0.0
    model.head.weight.data[:, 4] = 0.0
    model.up.weight.data[:, 4] = 0.0
    result = shrunk(model, 5, 4)
    # What is constant alone stays: positions are added to it.
    assert result.layers["stem"].removed_units == (4,) == result.layers["down"].removed_units
    assert result.model.scale.shape == (5,)
    assert result.model.places.shape == (1, 5, 5)


def test_a_scale_of_zero_cuts_a_branch_off():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.scale = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(6))

        def forward(self, x):
            return self.two(self.scale * self.one(x))

    model = Scaled()
    model.scale.data[2] = 0.0
    assert shrunk(model, 4).layers["one"].removed_units == (2,)


class Dense(nn.Module):
    """As in DenseNet and U-Net: all that came before is read beside what is new."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(19, 2, 1)

    def forward(self, x):
        high = torch.relu(self.down(x))
        return self.out(torch.cat([high, torch.relu(self.up(torch.relu(self.deep(high)))), x], 1))


def test_channels_leave_a_concatenation_with_the_networks_input():
    model = Dense()
    model.up.weight.data[:, [0, 5]] = 0.0
    model.up.bias.data[[0, 5]] = torch.tensor([1.0, -1.0])
    model.deep.weight.data[:, 2] = 0.0
    model.out.weight.data[:, 2] = 0.0
    model.up.weight.data[3] = 0.0
    result = shrunk(model, 3, 8, 8)
    assert {name: size.removed_units for name, size in result.layers.items()} == {
        "down": (2,),
        "deep": (3,),
        "up": (0, 5),
        "out": (),
    }


def test_tokens_of_two_kinds_lose_the_same_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.cat([self.one(x[:, :1]), self.other(x[:, 1:])], dim=1))

    model = Tokens()
    model.one.weight.data[[1, 2]] = 0.0
    model.other.weight.data[[1, 2]] = 0.0
    model.other.bias.data[1] = model.one.bias.data[1]
    model.head.weight.data[:, 5] = 0.0
    result = shrunk(model, 5, 4)
    assert result.layers["one"].removed_units == (1, 5) == result.layers["other"].removed_units


def test_a_single_map_over_all_channels_stays():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.map, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 1, 3, padding=1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = torch.relu(self.one(x))
            return self.two(x * torch.sigmoid(self.map(x)))

    model = Attention()
    model.two.weight.data[:, 2] = 0.0
    model.map.weight.data[:, 2] = 0.0
    assert shrunk(model, 3, 5, 5).removed == {"one": 1, "map": 0, "two": 0}


@pytest.mark.parametrize(("value", "left"), [(0.0, 1), (1.0, 0)])
def test_padding_of_places_keeps_zeros(value, left):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3)

        def forward(self, x):
            return self.two(functional.pad(torch.relu(self.one(x)), (1, 1, 1, 1), value=value))

    model = Padded()
    model.one.weight.data[2] = 0.0
    model.one.bias.data[2] = -1.0
    assert shrunk(model, 3, 5, 5).removed["one"] == left
