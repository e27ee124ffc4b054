"""Which channels leave: what is dead, to the fixed point, and together what belongs together."""

import torch
from torch import nn

import lobs
from helpers.compaction import ConvNet, Depthwise, Residual


def test_units_that_nothing_reads_and_units_that_read_nothing_leave_to_the_fixed_point():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    # Unit 1 of the middle is not read; it alone reads unit 2 of the first. Unit 0 of the first is constant, and unit 3
    # of the middle reads nothing but that.
    model[4].weight.data[:, 1] = 0.0
    model[2].weight.data[[0, 2], 2] = 0.0
    model[0].weight.data[0] = 0.0
    model[0].bias.data[0] = 2.0
    model[2].weight.data[3, 1:] = 0.0
    result = lobs.compact(model, torch.randn(3, 6))
    assert result.layers["0"].removed_units == (0, 2)
    assert result.layers["2"].removed_units == (1, 3)
    assert result.layers["2"].removed_inputs == (0, 2)
    assert result.layers["4"].removed_units == ()
    hidden = torch.relu(model[2].weight[3, 0] * 2.0 + model[2].bias[3])
    expected = model[4].bias + model[4].weight[:, 3] * hidden
    assert torch.allclose(result.model[4].bias, expected)
    assert result.removed == {"0": 2, "2": 2, "4": 0}


def test_input_columns_stay_even_when_nothing_reads_them():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data[:, :4] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.model[0].in_features == 6
    assert result.layers["0"].removed_inputs == ()


def test_a_channel_of_a_sum_leaves_only_when_it_is_dead_in_every_branch():
    model = Residual()
    for layer in (model.stem, model.two):
        layer.weight.data[[1, 2]] = 0.0
    model.stem.weight.data[3] = 0.0  # constant in the shortcut alone
    model.head.weight.data[:, 5] = 0.0  # not read, but the branch reads it before the sum
    result = lobs.compact(model.double(), torch.randn(2, 3, 8, 8).double())
    assert result.layers["stem"].removed_units == (1, 2) == result.layers["two"].removed_units
    assert result.layers["head"].removed_inputs == (1, 2)


def test_depthwise_channels_leave_with_their_inputs_and_groups_as_a_whole():
    model = Depthwise()
    model[6].weight.data[:, [4, 5, 9]] = 0.0  # both outputs of channel 2, one of channel 4
    result = lobs.compact(model.eval(), torch.randn(2, 3, 9, 9))
    assert result.layers["0"].removed_units == (2,)
    assert result.layers["3"].removed_units == (4, 5)
    assert (result.model[3].groups, result.model[3].in_channels, result.model[3].out_channels) == (7, 7, 14)
    model = Depthwise(groups=2)
    model[6].weight.data[:, 8:] = 0.0
    model[6].weight.data[:, 3] = 0.0
    result = lobs.compact(model.eval(), torch.randn(2, 3, 9, 9))
    assert result.layers["0"].removed_units == (4, 5, 6, 7)
    assert result.model[3].groups == 1


def test_a_network_that_is_dead_altogether_keeps_a_unit_per_layer_and_its_constant_output():
    model = ConvNet().eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.zero_()
    result = lobs.compact(model, torch.randn(2, 3, 16, 16))
    assert (result.model[0].out_channels, result.model[4].out_channels, result.model[10].out_features) == (1, 1, 1)
    inputs = torch.randn(3, 3, 16, 16)
    assert torch.allclose(model(inputs), result.model(inputs))
