"""Networks from their configuration."""

import pytest

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
