"""A layer's matrix view against the module's own forward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lobs.layers.matrix import input_samples, set_weight_matrix, unit_outputs, weight_matrix
from lobs.layers.network import prunable_layers


def as_product(module, inputs, chunk_bytes=2**20):
    """The layer's outputs ``[samples, out]`` from its matrix view alone."""
    matrix = weight_matrix(module)
    groups = getattr(module, "groups", 1)
    features = module.weight.shape[1:].numel()
    chunks = []
    for samples in input_samples(module, inputs, chunk_bytes):
        blocks = matrix[:, :features].unflatten(0, (groups, -1))
        outputs = samples @ blocks.mT  # [groups, samples, out / groups]
        outputs = outputs.permute(1, 0, 2).flatten(1)
        chunks.append(outputs + matrix[:, -1] if module.bias is not None else outputs)
    return torch.cat(chunks)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_its_matrix_times_its_samples(bias):
    module = nn.Linear(7, 4, bias=bias).double()
    inputs = torch.randn(3, 5, 7, dtype=torch.float64)
    expected = unit_outputs(module, module(inputs))
    torch.testing.assert_close(as_product(module, inputs), expected)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, (2, 1), "same"]),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
)
def test_convolution_is_its_matrix_times_its_patches(groups, kernel, stride, dilation, padding, mode, bias):
    if padding == "same":
        stride = 1
    module = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode).double()
    inputs = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    expected = unit_outputs(module, module(inputs))
    torch.testing.assert_close(as_product(module, inputs), expected)
    # chunk by chunk gives the same samples in the same order, and so do patches that are left as they lie
    torch.testing.assert_close(as_product(module, inputs, chunk_bytes=1), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lobs.layers.conv2d.LONG", 1)
        torch.testing.assert_close(as_product(module, inputs), expected)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    groups=st.sampled_from([1, 2, 4]),
)
def test_patches_are_those_of_unfold_to_the_bit(kernel, stride, dilation, padding, size, groups):
    module = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups)
    inputs = torch.randn(3, 4, *size, dtype=torch.float64)
    expected = functional.unfold(inputs, kernel, dilation, padding, stride).unflatten(1, (groups, -1))
    expected = expected.permute(1, 0, 3, 2).flatten(1, 2)
    assert torch.equal(torch.cat(list(input_samples(module, inputs)), dim=1), expected)


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Linear(6, 3, bias=False), nn.Conv2d(4, 6, 3, groups=2)])
def test_weight_matrix_round_trip(module):
    matrix = weight_matrix(module)
    wanted = torch.randn_like(matrix)
    set_weight_matrix(module, wanted)
    torch.testing.assert_close(weight_matrix(module), wanted)
    with pytest.raises(ValueError, match="does not fit"):
        set_weight_matrix(module, wanted[:, 1:])


def test_layers_are_chosen_by_name_and_pattern():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
    assert list(prunable_layers(model)) == ["0", "3", "4"]
    assert list(prunable_layers(model, ["[34]"])) == ["3", "4"]
    with pytest.raises(ValueError, match=r"no layer fits 'head'; the network has 0, 3, 4"):
        prunable_layers(model, ["head"])
    with pytest.raises(TypeError, match="'1' is a ReLU"):
        prunable_layers(model, ["1"])
    with pytest.raises(TypeError, match="list of names"):
        prunable_layers(model, "3")
    with pytest.raises(ValueError, match="no Linear or Conv2d"):
        prunable_layers(nn.ReLU())
