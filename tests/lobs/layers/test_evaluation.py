"""Evaluation mode ends where its block ends."""

import pytest
from torch import nn

from lobs.layers.evaluation import evaluation_mode


def test_every_modules_flag_comes_back_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model[1].training = model[0].training = False
    flags = [module.training for module in model.modules()]
    assert flags == [True, False, False, True, True]
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        model[0].train()
        raise KeyError
    assert [module.training for module in model.modules()] == flags
