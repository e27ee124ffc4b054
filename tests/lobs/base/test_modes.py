"""What a block changes about a network or about torch's modes is as it was when the block ends."""

import pytest
import torch
from torch import nn

from lobs.base.modes import copy_buffers, outside_modes, same_buffers


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(2))
        self.register_buffer("absent", None)

    def forward(self, x):
        self.calls += 1
        self.cache = x.detach()
        return x


def test_buffers_come_back_but_those_of_some_classes_and_new_ones():
    model = nn.Sequential(nn.BatchNorm1d(3), Counter(), nn.BatchNorm1d(3)).train()
    kept = model[1].calls
    with pytest.raises(KeyError), same_buffers(model, but=nn.BatchNorm1d):
        model(torch.randn(5, 3))
        model[1].absent = torch.ones(1)
        raise KeyError
    assert model[1].calls is kept and int(kept) == 0
    assert int(model[0].num_batches_tracked) == 1
    assert model[1].cache.shape == (5, 3), "a buffer of another shape is not the one from before"
    assert torch.equal(model[1].absent, torch.ones(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with same_buffers(model):
        model(torch.randn(5, 3))
        del model[1]._buffers["absent"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_buffers_that_did_not_change_are_not_written():
    model = Counter()
    before = model.calls._version
    with same_buffers(model):
        pass
    assert model.calls._version == before


def test_the_callers_modes_do_not_reach_a_function():
    @outside_modes
    def product(x, *, scale):
        """Documented."""
        assert not torch.is_inference_mode_enabled()
        return scale * (x @ x)

    assert (product.__name__, product.__doc__) == ("product", "Documented.")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        result = product(torch.eye(2), scale=3)
        assert result.dtype == torch.float32
        assert not result.is_inference()
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        with pytest.raises(TypeError):
            product(torch.eye(2))
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")


def test_buffers_are_copied_but_for_those_of_some_classes():
    def network(value):
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        model[1].register_buffer("count", torch.full((), value))
        model[1].register_buffer("history", torch.full((int(value),), value))
        model[0].running_mean.fill_(value)
        return model

    source, target = network(3.0), network(5.0)
    copy_buffers(source, target, but=nn.BatchNorm1d)
    assert target[1].count == 3
    assert target[1].history.tolist() == [3.0, 3.0, 3.0]
    assert target[0].running_mean.tolist() == [5.0, 5.0]
    copy_buffers(source, target)
    assert target[0].running_mean.tolist() == [3.0, 3.0]
    assert source[1].history.data_ptr() != target[1].history.data_ptr()
