"""A layer's matrix view against the module's own forward pass."""

import pytest
import torch
from torch import nn

from lobs.layers.linear import LinearView
from lobs.layers.matrix import VIEWS, call_input, find_view, set_weight_matrix, weight_matrix, zero_counts


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.Conv2d(4, 6, 3, groups=2)])
def test_weight_matrix_round_trip(module):
    matrix = weight_matrix(module)
    wanted = torch.randn_like(matrix)
    set_weight_matrix(module, wanted)
    torch.testing.assert_close(weight_matrix(module), wanted)
    with pytest.raises(ValueError, match="does not fit"):
        set_weight_matrix(module, wanted[:, 1:])


@pytest.mark.parametrize(
    ("module", "shape", "of"),
    [(nn.Linear(6, 3), (5, 3), 5), (nn.Linear(6, 3), (3,), 1), (nn.Conv2d(4, 3, 1), (5, 3, 2, 7), 70)],
)
def test_zeros_are_counted_for_every_unit(module, shape, of):
    outputs = torch.rand(shape) + 0.1
    by_unit = outputs.movedim(1 if len(shape) > 1 else 0, 0).reshape(3, -1)
    by_unit[1, :2] = torch.tensor([0.0, -1.0])[: by_unit.shape[1]]
    outputs = by_unit.reshape(3, *shape[:1], *shape[2:]).movedim(0, 1) if len(shape) > 1 else by_unit[:, 0]
    zeros, count = zero_counts(module, outputs)
    assert zeros.tolist() == [0, min(2, of), 0]
    assert count == of


@pytest.mark.parametrize("at_once", [1, 50, 100, 10**6])
def test_zeros_of_many_outputs_are_counted_part_by_part(at_once, monkeypatch):
    monkeypatch.setattr("lobs.layers.matrix.COUNTED_AT_ONCE", at_once)
    outputs = torch.randn(5, 3, 2, 7, generator=torch.Generator().manual_seed(0))
    zeros, count = zero_counts(nn.Conv2d(4, 3, 1), outputs)
    assert zeros.tolist() == (outputs <= 0).sum((0, 2, 3)).tolist()
    assert count == 5 * 2 * 7
    one = zero_counts(nn.Conv2d(4, 3, 1), outputs[0])
    assert (one[0].tolist(), one[1]) == ((outputs[0] <= 0).sum((1, 2)).tolist(), 14)
    nothing = zero_counts(nn.Linear(6, 3), torch.zeros(0, 3))
    assert (nothing[0].tolist(), nothing[1]) == ([0, 0, 0], 0)


def test_a_bias_that_is_no_column_stays_as_it_is():
    module = nn.Linear(6, 3)
    bias, matrix = module.bias.clone(), torch.randn(3, 6)
    set_weight_matrix(module, matrix, bias=False)
    assert torch.equal(module.weight, matrix)
    assert torch.equal(module.bias, bias)
    assert torch.equal(weight_matrix(module, bias=False), matrix)
    assert torch.equal(weight_matrix(module, bias=True), torch.cat([matrix, bias[:, None]], 1))
    with pytest.raises(ValueError, match=r"a matrix of shape \(3, 7\) does not fit .*: expected \(3, 6\)"):
        set_weight_matrix(module, weight_matrix(module), bias=False)


def test_a_weight_matrix_is_a_copy():
    for module in (nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.ConvTranspose1d(2, 3, 2, bias=False)):
        before = module.weight.clone()
        weight_matrix(module).zero_()
        weight_matrix(module, bias=False).zero_()
        assert torch.equal(module.weight, before)
        assert weight_matrix(module).is_contiguous()


def test_a_calls_input_is_its_first_argument_or_the_one_of_that_name():
    one, other = torch.ones(1), torch.ones(2)
    assert call_input((one, other), {"input": other}) is one
    assert call_input((), {"other": other, "input": one}) is one
    assert call_input((), {"x": one, "y": other}) is one
    for args, kwargs in (((), {}), (([one],), {"input": one}), ((), {"x": "text", "y": one}), ((None,), {})):
        assert call_input(args, kwargs) is None


def test_every_class_has_the_view_of_its_nearest_registered_one(monkeypatch):
    class First(nn.Linear):
        pass

    class Second(First):
        pass

    own = LinearView()
    assert find_view(Second(2, 2)) is VIEWS[nn.Linear]
    monkeypatch.setitem(VIEWS, First, own)
    assert find_view(Second(2, 2)) is find_view(First(2, 2)) is own
    assert find_view(nn.Linear(2, 2)) is VIEWS[nn.Linear]
    assert find_view(nn.ReLU()) is None
