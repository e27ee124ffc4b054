"""What a layer is given in the pruned network, beside what it gave in the dense one, against all samples at once."""

import copy

import pytest
import torch
from torch import nn

import lobs
from helpers.sequence import pairs


def test_targets_of_a_grouped_convolution_stay_in_order():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)).double().eval()
    pruned = copy.deepcopy(dense)
    nn.init.normal_(pruned[0].weight)
    images = torch.randn(9, 4, 5, 5, dtype=torch.float64)
    base = lobs.collect_statistics(dense, [images])["2"]
    layer = pairs(dense, pruned, "2", images.split(4), base, keep=7)
    x, z = pruned[1](pruned[0](images)), dense(images).movedim(1, -1).reshape(-1, 6)
    error = float((pruned(images) - dense(images)).detach().square().sum() / len(z))
    assert layer.target_error(lobs.layers.matrix.weight_matrix(dense[2])) == pytest.approx(error)
    for group in range(2):
        patches = nn.functional.unfold(x[:, 2 * group : 2 * group + 2], 3).movedim(1, 2).reshape(-1, 18)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        expected = z[:, 3 * group : 3 * group + 3].T @ patches / len(patches)
        torch.testing.assert_close(layer.group(group).target_moment, expected)
        assert layer.group(group).target_sample.shape == (7, 3)
    assert 0 < layer.target_floor() < error
    repaired = lobs.schedule.sequential.reference_weight(
        lobs.layers.matrix.weight_matrix(dense[2]), layer, damping=1e-9
    )
    floor = layer.target_floor()
    assert floor * (1 - 1e-12) <= layer.target_error(repaired) < floor + 1e-6 * error  # rounding apart


def test_calls_without_a_sample_do_not_hide_the_ones_after_them():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            return torch.cat([self.layer(x[:0]), self.layer(x[:2]), self.layer(x[2:])])

    torch.manual_seed(0)
    dense = Sometimes().double().eval()
    pruned = copy.deepcopy(dense)
    nn.init.normal_(pruned.first.weight)
    inputs = torch.randn(30, 4, dtype=torch.float64)
    base = lobs.collect_statistics(dense, [inputs])["layer"]
    layer = pairs(dense, pruned, "layer", inputs.split(10), base, keep=0)
    x, z = pruned.first(inputs).detach(), dense(inputs).detach()
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    assert (layer.samples, layer.inputs) == (30, 30)
    torch.testing.assert_close(layer.second_moment, x.T @ x / 30)
    torch.testing.assert_close(layer.target_moment, z.T @ x / 30)


def test_what_reaches_a_layer_may_not_depend_on_what_was_pruned():
    """A mixture of experts: how many rows an expert is given is another number in the pruned network."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.expert = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = self.router(x)
            return self.expert(hidden[hidden[:, 0] > 0]).sum(0) + hidden[:, :3]

    torch.manual_seed(0)
    dense = Routed().double().eval()
    pruned, inputs = copy.deepcopy(dense), torch.randn(40, 4, dtype=torch.float64)
    base = lobs.collect_statistics(dense, [inputs])["expert"]
    pairs(dense, pruned, "expert", [inputs], base, keep=0)
    message = r"layer 'expert' gives \[\(\d+, 3\)\] in the pruned network and \[\(\d+, 3\)\]"
    for shift in (1, -1):  # more rows, and fewer
        with torch.no_grad():
            pruned.router.bias.copy_(dense.router.bias + shift)
        with pytest.raises(ValueError, match=message):
            pairs(dense, pruned, "expert", [inputs], base, keep=0)
