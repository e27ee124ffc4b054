"""Linears on tokens, convolutions of any number of dimensions, and transposed ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs

CASES = {
    "tokens": (nn.Linear, (), {}, (5, 3)),
    "maps of tokens": (nn.Linear, (), {}, (4, 5, 3)),
    "one dimension": (nn.Conv1d, (2,), {}, (3, 9)),
    "three dimensions": (nn.Conv3d, (2,), {}, (3, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d, (3,), {"stride": 2, "output_padding": 1}, (3, 4, 4)),
    "transposed, one dimension": (nn.ConvTranspose1d, (2,), {}, (3, 6)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_units_leave(name, bias):
    kind, args, options, shape = CASES[name]
    model = nn.Sequential(
        *(kind(3, 8, *args, bias=bias, **options), nn.ReLU(), kind(8, 6, *args, bias=bias, **options), nn.Tanh()),
        kind(6, 2, *args, bias=bias, **options),
    )
    transposed = "transposed" in name
    for place, layer in enumerate((model[0], model[2], model[4])):
        weight = layer.weight.data.transpose(0, 1) if transposed else layer.weight.data
        if place < 2:
            weight[2] = 0.0
        if place:
            weight[:, 4] = 0.0
    if bias:
        model[0].bias.data[2] = -1.0
    model.double()
    result = lobs.compact(model, torch.randn(2, *shape).double())
    inputs = torch.randn(3, *shape).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))
    assert result.layers["0"].removed_units == (2, 4)
    # A constant that is not zero does not stay one under a transposed convolution.
    assert result.layers["2"].removed_units == ((4,) if transposed and bias else (2, 4))
    if transposed and bias:
        assert result.staying["2"] == {"is a constant that '4' cannot take into its bias": (2,)}


def test_channels_of_grouped_transposed_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=2), nn.Conv2d(8, 2, 1))
    model[0].weight.data[1] = 0.0
    result = lobs.compact(model, torch.randn(2, 3, 4, 4))
    assert result.removed == {"0": 0, "2": 0}
    assert result.staying["0"] == {"is read by '1' (ConvTranspose2d)": (1,)}


def test_a_product_of_a_modules_own_weight_is_followed_on_tokens():
    class Own(nn.Linear):
        def forward(self, x):
            return functional.linear(x, self.weight, self.bias)

    model = nn.Sequential(Own(3, 8), nn.ReLU(), Own(8, 2))
    model[0].weight.data[2] = 0.0
    result = lobs.compact(model, torch.randn(2, 5, 3))
    assert result.removed == {"0": 1, "2": 0}
    assert result.difference < 1e-6


def test_a_layer_that_reads_another_dimension_keeps_the_channels():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tokens, self.two = nn.Linear(3, 8), nn.Linear(5, 6), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(self.tokens(self.one(x).mT).mT)

    model = Mixer()
    model.one.weight.data[2] = 0.0
    result = lobs.compact(model, torch.randn(2, 5, 3))
    assert result.removed["one"] == 0
    assert result.staying["one"] == {"is read by 'tokens' along another dimension, too": (2,)}
