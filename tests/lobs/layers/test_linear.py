"""A linear layer's matrix view against the module's own forward pass."""

import pytest
import torch
from torch import nn

from helpers.products import as_product
from lobs.layers.linear import TransposedLinearView
from lobs.layers.matrix import find_view, unit_outputs


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_its_matrix_times_its_samples(bias):
    module = nn.Linear(7, 4, bias=bias).double()
    inputs = torch.randn(3, 5, 7, dtype=torch.float64)
    expected = unit_outputs(module, module(inputs))
    torch.testing.assert_close(as_product(module, inputs), expected)


class Conv1D(nn.Module):
    """As transformers has it, or nearly so."""

    def __init__(self, shape=(5, 3), units="nf", bias="bias"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        setattr(self, units, 3)
        setattr(self, bias, nn.Parameter(torch.randn(3)))


class Derived(Conv1D):
    pass


class Another(nn.Module):
    def __init__(self):
        super().__init__()
        self.nf, self.weight, self.bias = 3, nn.Parameter(torch.randn(5, 3)), None


def test_a_transposed_linear_layer_is_known_by_its_name_units_weight_and_bias():
    assert isinstance(find_view(Conv1D()), TransposedLinearView)
    assert isinstance(find_view(Derived()), TransposedLinearView)
    computed = Conv1D()
    computed.weight = None
    others = [Conv1D((5, 3, 1)), Conv1D((5,)), Conv1D(units="units"), Conv1D(bias="shift"), Another(), computed]
    assert [find_view(module) for module in others] == [None] * len(others)
