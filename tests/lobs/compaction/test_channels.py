"""Which channels leave: what is dead, to the fixed point, and together what belongs together."""

import pytest
import torch
from torch import nn

import lobs
from helpers.compaction import ConvNet, Depthwise, Residual
from lobs.compaction.channels import Axis, Channels, LinearOperation, constants


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


def axis(ids, known=None, value=None):
    known = torch.zeros(len(ids), dtype=torch.bool) if known is None else torch.tensor(known)
    return Axis(ids, known, torch.zeros(len(ids)).double() if value is None else torch.tensor(value).double())


def linear(channels, module, inputs, foldable=None):
    """A layer among the channels; its ids."""
    outputs = channels.new(len(module.weight))
    foldable = torch.zeros(len(inputs.ids), dtype=torch.bool) if foldable is None else torch.tensor(foldable)
    channels.products.append(LinearOperation("", module, inputs, outputs, module.weight != 0, foldable))
    return outputs


def test_what_pinned_units_read_is_needed_and_what_is_tied_to_it():
    channels = Channels()
    inputs = channels.new(3)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    with torch.no_grad():
        second.weight[:, [1, 3]] = 0
    hidden = linear(channels, first, axis(inputs))
    outputs = linear(channels, second, axis(hidden), [True, False, False, False])
    channels.pin(outputs, "is an output")
    # The first unit is a constant that the bias takes over, the second and the fourth are not read.
    assert channels.needed()[hidden].tolist() == [False, False, True, False]
    assert channels.needed()[inputs].all()
    channels.tie(hidden[1:2], hidden[2:3])
    assert channels.needed()[hidden].tolist() == [False, True, True, False]
    channels.pin(hidden[3:], "is read")
    assert channels.needed()[hidden].tolist() == [False, True, True, True]


def test_no_layer_is_left_without_a_unit():
    channels = Channels()
    layer = nn.Linear(3, 4)
    hidden = linear(channels, layer, axis(channels.new(3)))
    assert channels.needed()[hidden].tolist() == [True, False, False, False]


def test_known_values_follow_functions_and_are_forgotten_where_they_are_not_finite():
    given = axis(torch.arange(3), [True, True, False], [2.0, 0.0, 1.0])
    found = given.mapped(lambda value: 1 / value)
    assert found.known.tolist() == [True, False, False]
    assert found.value[0] == 0.5
    assert given.value.tolist() == [2.0, 0.0, 1.0]
    assert given.where(given.value == 0).known.tolist() == [False, True, False]
    assert given.where(False).known.tolist() == [False] * 3


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, (1, 2), groups=2, bias=False)],
)
def test_a_layers_constants_are_its_outputs_on_constant_inputs(module):
    value = torch.tensor([1.0, 0.0, -2.0, 3.0]).double()
    inputs = value[None] if isinstance(module, nn.Linear) else value[None, :, None, None].expand(1, 4, 5, 5)
    outputs = module.double()(inputs).detach()
    expected = outputs.flatten(2)[0, :, 0] if outputs.dim() == 4 else outputs[0]
    torch.testing.assert_close(constants(module, value), expected)


def test_dead_units_that_stay_are_named_with_the_reason():
    channels = Channels()
    layer, reader, dead = nn.Linear(2, 6), nn.Linear(6, 2), nn.Linear(2, 3)
    with torch.no_grad():
        reader.weight[:, 1:] = 0
        reader.weight[:, 5] = 1
    hidden = linear(channels, layer, axis(channels.new(2)))
    channels.products[-1].constant = torch.tensor([False] * 5 + [True])
    # Unit 5 is a constant, known to its reader, which cannot take it over.
    inputs = axis(hidden, [False] * 5 + [True], [0.0] * 5 + [2.0])
    outputs = linear(channels, reader, inputs)
    spare = linear(channels, dead, axis(channels.new(2)))
    channels.pin(outputs, "is an output")
    channels.pin(spare[2:], "feeds a norm")
    channels.tie(hidden[1:2], hidden[:1])
    channels.tie(hidden[2:3], spare[2:])
    channels.tie(hidden[3:4], hidden[1:2])
    channels.use(hidden[3:4])
    channels.products[0].name, channels.products[1].name = "layer", "reader"
    need = channels.needed()
    assert need[hidden].tolist() == [True, True, True, True, False, True]
    assert channels.staying(need)["layer"] == {
        "leaves with others only (a sum, a group, a head), of which one is needed": (1,),
        "meets another branch, of which a channel feeds a norm": (2,),
        "is a constant that 'reader' cannot take into its bias": (5,),
    }


def test_a_dead_layer_names_the_unit_that_it_keeps():
    channels = Channels()
    linear(channels, nn.Linear(3, 4), axis(channels.new(3)))
    assert channels.staying(channels.needed()) == {"": {"is kept so that the layer is not empty": (0,)}}
