"""A layer's matrix view against the module's own forward pass."""

import pytest
import torch
from torch import nn

from lobs.layers.matrix import set_weight_matrix, weight_matrix


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.Conv2d(4, 6, 3, groups=2)])
def test_weight_matrix_round_trip(module):
    matrix = weight_matrix(module)
    wanted = torch.randn_like(matrix)
    set_weight_matrix(module, wanted)
    torch.testing.assert_close(weight_matrix(module), wanted)
    with pytest.raises(ValueError, match="does not fit"):
        set_weight_matrix(module, wanted[:, 1:])
