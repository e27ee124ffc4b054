"""Networks from their configuration."""

import copy

import pytest
import torch
from torch import nn

from lobs_paper.networks.build import build


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"_target_": "torch.nn.Nonsense"}, "cannot be imported"),
        ({"_target_": "no_such_package.Net"}, "cannot be imported"),
        ({"_target_": "Net"}, "cannot be imported"),
        ({"_target_": "torch.nn.Linear", "inputs": 3}, "does not accept {'inputs': 3}"),
        ({"_target_": "torch.Tensor"}, "not a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(model, expected):
    with pytest.raises(ValueError, match=expected):
        build(model)


def test_any_module_can_be_an_experiments_network():
    assert build({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}).weight.shape == (2, 3)


class Sides(nn.Sequential):
    def __init__(self, inputs):
        super().__init__(nn.Linear(inputs, 3), nn.Linear(3, 2))

    def forward(self, x):
        """Both layers' outputs."""
        return {"first": self[0](x), "second": super().forward(x)}


def second(outputs):
    return outputs["second"]


@pytest.mark.parametrize("output", ["second", f"{__name__}.second"])
def test_a_part_of_the_outputs_is_what_the_network_answers(output):
    network = build({"_target_": f"{__name__}.Sides", "inputs": 4, "output": output})
    x = torch.randn(5, 4)
    for each in (network, copy.deepcopy(network)):
        assert torch.equal(each(x), Sides.forward(network, x)["second"])
    assert network.state_dict().keys() == Sides(4).state_dict().keys()
    assert isinstance(network, Sides)
