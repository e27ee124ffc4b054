"""Networks from their configuration."""

import copy
from shutil import copyfile  # noqa: F401 (named by a test, as if it were this module's)

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
        ({"_target_": "torch.Tensor"}, "a _TensorMeta, not a torch.nn.Module's class"),
        ({"_target_": "os.system", "command": "touch ran"}, "a builtin_function_or_method, not a torch.nn.Module"),
        ({"_target_": "os.makedirs", "name": "ran"}, "a function of os, not a torch.nn.Module"),
        ({"_target_": "torch.save", "obj": 1, "f": "ran"}, "a function of torch.serialization, not"),
        ({"_target_": f"{__name__}.copyfile", "src": __file__, "dst": "ran"}, "a function of shutil, not"),
        ({"_target_": f"{__name__}.number"}, "builds a int, not a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_built_is_named_and_nothing_else_called(model, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=expected):
        build(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["torchvision.models.alexnet", f"{__name__}.own"])
def test_functions_of_torchvision_and_of_a_module_of_ones_own_make_networks(target):
    assert isinstance(build({"_target_": target, "num_classes": 2}), nn.Module)


def test_any_module_can_be_an_experiments_network():
    assert build({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}).weight.shape == (2, 3)


def number():
    return 3


def own(num_classes):
    return nn.Linear(1, num_classes)


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
