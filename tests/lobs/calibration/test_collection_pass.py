"""One pass over the batches: every call of every layer is a part of its sums."""

import pytest
import torch
from torch import nn

import lobs
from helpers.moments import dense_moment


def test_zeros_are_counted_over_all_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU()).double()
    inputs = torch.randn(3, 2, 40, 30, dtype=torch.float64)  # so many positions that patches are left as they lie
    layer = lobs.collect_statistics(model, inputs.split(2))["0"]
    torch.testing.assert_close(layer.zero_fraction, (model(inputs) == 0).double().mean((0, 2, 3)))
    patches = nn.functional.unfold(inputs, 3, padding=1).movedim(1, 2).reshape(-1, 18)
    torch.testing.assert_close(layer.second_moment, dense_moment(patches, True))


def test_convolution_counts_every_position_as_a_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU()).double()
    images = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    layer = lobs.collect_statistics(model, [images])["0"]
    patches = torch.nn.functional.unfold(images, 3, padding=1, stride=2)  # [5, 2 * 9, 16]
    assert (layer.samples, layer.inputs, layer.groups) == (5 * 16, 5, 2)
    for group in range(2):
        samples = patches[:, group * 9 : group * 9 + 9].movedim(1, 2).reshape(-1, 9)
        torch.testing.assert_close(layer.group(group).second_moment, dense_moment(samples, True))
        expected = (model[0](images)[:, 2 * group : 2 * group + 2] <= 0).double().mean((0, 2, 3))
        torch.testing.assert_close(layer.group(group).zero_fraction, expected)


def test_a_layer_called_twice_sees_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x):
            return self.layer(self.layer(x))

    model, inputs = Twice(), torch.randn(4, 3, dtype=torch.float64)
    layer = lobs.collect_statistics(model, [inputs])["layer"]
    both = torch.cat([inputs, model.layer(inputs).detach()])
    assert (layer.samples, layer.inputs) == (8, 4)
    torch.testing.assert_close(layer.second_moment, dense_moment(both, True))


def test_training_flags_come_back_and_targets_are_ignored():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    batches = [(torch.randn(4, 3), torch.zeros(4))]
    lobs.collect_statistics(model, batches)
    assert [module.training for module in model] == [True, False, True] and model.training


@pytest.mark.parametrize("larger", [True, False])
def test_a_later_call_with_another_output_size_is_refused(larger):
    """The first call is compared with its samples' products; of all calls the numbers of positions are."""

    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 2, stride=2, output_padding=0 if larger else 1)

        def forward(self, x):
            usual = 2 * x.shape[2] + self.up.output_padding[0]
            return self.up(x, output_size=[usual] if len(x) == 4 else [usual + (1 if larger else -1)])

    statistics = lobs.collect_statistics(Sized(), [torch.randn(4, 2, 5), torch.randn(4, 2, 6)])
    assert statistics["up"].samples == 4 * (2 * 5 + 2 * 6 + (0 if larger else 2))
    gave = 3 * (11 if larger else 10)
    message = rf"layer 'up' was given {3 * (10 if larger else 11)} samples and gave {gave} in one call \(output_size="
    with pytest.raises(ValueError, match=message):
        lobs.collect_statistics(Sized(), [torch.randn(4, 2, 5), torch.randn(3, 2, 5)])


def test_inputs_are_those_of_the_batches_that_reach_a_layer():
    """Up to the last call: batches before it count, those behind it do not; empty calls are none."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.some = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.always(x)
            return self.some(self.some(x) if len(x) == 5 else x[:0])

    model = Sometimes()
    batches = [torch.randn(count, 3) for count in (4, 5, 2)]
    statistics = lobs.collect_statistics(model, batches)
    assert (statistics["always"].samples, statistics["always"].inputs) == (11, 11)
    assert (statistics["some"].samples, statistics["some"].inputs) == (10, 9)
    assert statistics.calls.called == ["always", "some"]
    assert statistics.calls.empty == []
    without = lobs.collect_statistics(model, batches[:1])
    assert (without.calls.called, without.calls.empty) == (["always"], ["some"])
