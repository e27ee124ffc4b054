"""A layer's matrix view against the module's own forward pass."""

import pytest
import torch
from torch import nn

from lobs.layers.matrix import set_weight_matrix, weight_matrix, zero_counts


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
