"""A linear layer's matrix view against the module's own forward pass."""

import pytest
import torch
from torch import nn

from helpers.products import as_product
from lobs.layers.matrix import unit_outputs


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_its_matrix_times_its_samples(bias):
    module = nn.Linear(7, 4, bias=bias).double()
    inputs = torch.randn(3, 5, 7, dtype=torch.float64)
    expected = unit_outputs(module, module(inputs))
    torch.testing.assert_close(as_product(module, inputs), expected)
