"""What is known about channels after each step, and that nothing is claimed where a step is unknown."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs
from helpers.compaction import ConvNet, kill
from lobs_paper.networks.lenet300 import LeNet300


@pytest.mark.parametrize(
    ("padding", "mode", "bias", "left"),
    [
        (0, "zeros", 1.0, 7),
        (1, "zeros", 1.0, 8),
        (1, "zeros", -1.0, 7),
        (1, "reflect", 1.0, 7),
        ("same", "zeros", 1.0, 8),
    ],
)
def test_a_constant_goes_through_zero_padding_only_when_it_is_zero(padding, mode, bias, left):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode))
    model[0].weight.data[2] = 0.0
    model[0].bias.data[2] = bias
    result = lobs.compact(model.double(), torch.randn(2, 3, 9, 9).double())
    assert result.model[0].out_channels == left
    assert result.difference < 1e-12


def test_zero_padding_as_a_step_of_its_own_keeps_constants_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3))
    model[0].weight.data[:2] = 0.0
    model[0].bias.data[:2] = torch.tensor([0.0, 1.0])
    assert lobs.compact(model, torch.randn(2, 3, 9, 9)).layers["0"].removed_units == (0,)


def test_a_batch_norm_with_a_scale_of_zero_makes_a_constant():
    model = kill(ConvNet(), rows=0.0, columns=0.0)
    model[1].weight.data[4] = 0.0
    result = lobs.compact(model, torch.randn(2, 3, 16, 16))
    assert result.layers["0"].removed_units == (4,)
    assert result.model[1].num_features == 15


class Unknown(nn.Module):
    """A softmax over channels, which mixes them, in the middle."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.three(torch.relu(self.two(torch.softmax(self.one(x), dim=1))))


def test_channels_that_reach_an_unknown_step_stay_and_others_leave():
    model = Unknown()
    model.one.weight.data[1] = 0.0
    model.two.weight.data[:, 2] = 0.0
    model.two.weight.data[3] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.removed == {"one": 0, "two": 1, "three": 0}


def test_layers_that_are_called_twice_or_have_hooks_stay_as_they_are():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(self.one(torch.relu(self.one(x))))

    model = Twice()
    model.one.weight.data[1] = 0.0
    assert lobs.compact(model, torch.randn(2, 6)).parameters_left == 63
    hooked = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    hooked[0].weight.data[1] = 0.0
    assert lobs.compact(hooked, torch.randn(2, 6)).removed["0"] == 1
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert "0" not in lobs.compact(hooked, torch.randn(2, 6)).layers


def test_a_tensor_that_is_overwritten_while_others_read_it_is_left_alone():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.one(x)
            y = functional.relu(x, inplace=True)
            return self.two(x) + self.two.bias.sum() * y.sum()

    model = InPlace()
    model.one.weight.data[1] = 0.0
    model.one.bias.data[1] = -1.0
    assert lobs.compact(model, torch.randn(2, 6)).difference == 0.0


def test_a_function_that_overwrites_its_argument_is_noticed():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            x = self.one(x)
            y = torch.relu_(x)
            return self.two(x) + self.three(y)

    model = Overwrites()
    model.one.weight.data[1] = 0.0
    model.one.bias.data[1] = -1.0
    assert lobs.compact(model, torch.randn(2, 6)).difference < 1e-6


class Counts(nn.Module):
    """Reads sizes in every way; only one of them counts the channels."""

    def __init__(self, channels):
        super().__init__()
        self.one, self.two, self.channels = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), channels

    def forward(self, x):
        x = torch.relu(self.one(x))
        (batch, count, height, _), shape = x.shape, x.size()
        places = height * x.size(dim=3) // 2 + x.dim() + x.ndim + shape[2:][0]
        return self.two(x) * (count if self.channels else places) / batch


@pytest.mark.parametrize(("channels", "left"), [(False, 1), (True, 0)])
def test_only_a_step_that_counts_channels_keeps_them(channels, left):
    model = Counts(channels)
    model.one.weight.data[1] = 0.0
    result = lobs.compact(model, torch.randn(2, 3, 4, 4))
    assert result.removed["one"] == left
    assert result.difference < 1e-4
    if channels:
        assert result.staying["one"] == {"is read by mul, by the number of channels": (1,)}


def test_what_fx_cannot_trace_is_an_error_that_says_why():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"Branching cannot be compacted: torch.fx cannot trace it \(TraceError: symb"):
        lobs.compact(Branching(3, 3), torch.randn(2, 3))


def test_an_example_that_does_not_fit_is_an_error_that_shows_its_shape():
    with pytest.raises(ValueError, match=r"LeNet300 does not accept the example input of shape \(2, 3\)"):
        lobs.compact(LeNet300(), torch.randn(2, 3))


def test_a_module_may_have_the_name_of_a_method():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.dim = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.dim(torch.relu(self.size(x)))

    model = Named()
    model.dim.weight.data[:, 1] = 0.0
    assert lobs.compact(model, torch.randn(2, 6)).removed == {"size": 1, "dim": 0}
