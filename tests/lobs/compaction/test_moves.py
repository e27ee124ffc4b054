"""Where channels go when values are moved about, and that a size written as a number keeps them."""

from math import prod

import pytest
import torch
from torch import nn

import lobs
from lobs.compaction.channels import Axis
from lobs.compaction.moves import blocks, moved


class Step(nn.Module):
    """A step between a convolution of 8 channels, of which two are dead, and a Linear or convolution."""

    def __init__(self, step, reader):
        super().__init__()
        self.step, self.one, self.two = step, nn.Conv2d(3, 8, 1), reader
        self.one.weight.data[[2, 5]] = 0.0
        self.eval()

    def forward(self, x):
        return self.two(self.step(torch.relu(self.one(x))))


FOLLOW = {
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), nn.Linear(8, 4)),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), nn.Linear(8, 4)),
    "there and back": (lambda x: torch.permute(x.permute(0, 2, 3, 1), [0, 3, 1, 2]), nn.Conv2d(8, 4, 1)),
    "mT": (lambda x: x.flatten(2).mT, nn.Linear(8, 4)),
    "mean and a new dimension": (lambda x: x.mean((2, 3)).unsqueeze(1), nn.Linear(8, 4)),
    "mean with its dimensions": (lambda x: x.mean((2, 3), keepdim=True), nn.Conv2d(8, 4, 1)),
    "squeezed": (lambda x: x.mean(2, keepdim=True).squeeze(2).transpose(1, 2), nn.Linear(8, 4)),
    "flattened to columns": (lambda x: x.reshape(x.shape[0], -1), nn.Linear(128, 4)),
    "channels last to columns": (lambda x: x.permute(0, 2, 3, 1).flatten(1), nn.Linear(128, 4)),
    "rows of windows": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4, x.shape[1]), nn.Linear(8, 4)),
    "sizes by name": (lambda x: x.view(x.size(0), x.size(1), 16).transpose(1, 2), nn.Linear(8, 4)),
    "one token": (lambda x: x.flatten(2).mT[:, 0], nn.Linear(8, 4)),
    "every other place": (lambda x: x[..., ::2, 1:], nn.Conv2d(8, 4, 1)),
    "rolled": (lambda x: torch.roll(x, (1, 1), (2, 3)), nn.Conv2d(8, 4, 1)),
    "resized": (lambda x: nn.functional.interpolate(x, scale_factor=2), nn.Conv2d(8, 4, 1)),
    "chunks of places": (lambda x: torch.cat([x.chunk(2, 3)[1], x.chunk(2, 3)[0]], 3), nn.Conv2d(8, 4, 1)),
}
STAY = {
    "a written number of channels": (lambda x: x.view(-1, 8, 16).transpose(1, 2), nn.Linear(8, 4)),
    "written columns": (lambda x: x.view(-1, 128), nn.Linear(128, 4)),
    "places become channels": (lambda x: x.flatten(2), nn.Linear(16, 4)),
    "chosen channels": (lambda x: x[:, :4], nn.Conv2d(4, 4, 1)),
    "every unit dimension": (lambda x: x.mean((2, 3)).squeeze(), nn.Linear(8, 4)),
    "channels rolled": (lambda x: torch.roll(x, 1, 1), nn.Conv2d(8, 4, 1)),
    "their number used": (lambda x: x * x.shape[1], nn.Conv2d(8, 4, 1)),
    "windows of written size": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4, 8), nn.Linear(8, 4)),
    "a softmax over places": (lambda x: x.flatten(2).softmax(2).mT, nn.Linear(8, 4)),
}


@pytest.mark.parametrize("name", [*FOLLOW, *STAY])
def test_dead_channels_leave_through_a_step_or_stay_with_a_reason(name):
    model = Step(*(FOLLOW | STAY)[name]).double()
    result = lobs.compact(model, torch.randn(2, 3, 4, 4).double())
    inputs = torch.randn(3, 3, 4, 4).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))
    if name in FOLLOW:
        assert result.layers["one"].removed_units == (2, 5)
        assert "one" not in result.staying
    else:
        assert result.layers["one"].removed_units == ()
        ((reason, units),) = result.staying["one"].items()
        assert "is read by" in reason
        assert units == (2, 5)


class Shuffle(nn.Module):
    """As in ShuffleNet: half of the channels pass by, then both halves are shuffled."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        one, other = self.stem(x).chunk(2, dim=1)
        x = torch.cat((one, self.branch(other)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        x = torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)
        return self.head(x)


def test_of_both_halves_of_a_shuffle_as_many_leave():
    model = Shuffle().double()
    model.head.weight.data[:, [2, 3, 4]] = 0.0  # the second pair of channels, and one of the third
    model.branch.weight.data[:, 1] = 0.0
    result = lobs.compact(model, torch.randn(2, 3, 4, 4).double())
    assert result.layers["stem"].removed_units == (1, 5)
    assert result.layers["branch"].removed_units == (1,)
    assert result.model.head.in_channels == 6
    inputs = torch.randn(3, 3, 4, 4).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))
    ((reason, units),) = result.staying["stem"].items()
    assert "leaves with others only" in reason
    assert units == (2,)


def test_a_gated_unit_leaves_with_its_gate():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 10), nn.Linear(5, 3)

        def forward(self, x):
            value, gate = self.one(x).chunk(2, dim=-1)
            return self.two(value * torch.sigmoid(gate))

    model = Gated()
    model.two.weight.data[:, 1] = 0.0
    result = lobs.compact(model, torch.randn(2, 7, 6))
    assert result.layers["one"].removed_units == (1, 6)
    assert result.difference < 1e-6


def test_blocks_of_a_reshape_are_the_smallest():
    cases = {
        ((2, 8, 4, 4), (2, 8, 16)): [([0], [0]), ([1], [1]), ([2, 3], [2])],
        ((2, 8, 3), (2, 2, 4, 3)): [([0], [0]), ([1], [1, 2]), ([2], [3])],
        ((6, 4), (4, 6)): [([0, 1], [0, 1])],
        ((2, 3, 1, 1), (2, 3)): [([0], [0]), ([1], [1])],
    }
    for (before, after), expected in cases.items():
        assert prod(before) == prod(after)
        assert list(blocks(torch.Size(before), torch.Size(after))) == expected


def test_ids_move_with_their_values_and_are_kept_once():
    axis = Axis(torch.arange(3).view(1, 3, 1), torch.tensor([[[True], [False], [True]]]), torch.randn(1, 3, 1))
    found = moved(axis, torch.Size((2, 3, 4)), lambda places: places.transpose(1, 2).flatten(1))
    assert found.ids.tolist() == [[0, 1, 2] * 4]
    found = moved(axis, torch.Size((2, 3, 4)), lambda places: places.transpose(0, 1))
    assert found.ids.shape == (3, 1, 1)
    assert torch.equal(found.value.flatten(), axis.value.flatten())
