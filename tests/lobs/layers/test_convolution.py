"""A convolution's matrix view against the module's own forward pass, and its patches against unfold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from helpers.products import as_product
from lobs.layers.matrix import input_samples, unit_outputs, view_of


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
        patch.setattr("lobs.layers.convolution.LONG", 1)
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


class OneStep(nn.Conv2d):
    """Gives torch's function one number for both axes, as it may."""

    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias, (2,), [1], (1,), self.groups)


class Same(nn.Conv2d):
    """Its padding is torch's own word."""

    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias, padding="same", dilation=self.dilation)


@pytest.mark.parametrize(("kernel", "dilation"), [((6, 3), 1), ((2, 4), (3, 1))])
def test_padding_that_keeps_the_size_has_its_larger_part_behind(kernel, dilation):
    module = Same(2, 4, kernel, dilation=dilation).double()
    inputs = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(as_product(module, inputs), unit_outputs(module, module(inputs)))


def test_one_number_in_a_sequence_counts_for_all_axes():
    module, inputs = OneStep(4, 8, 3).double(), torch.randn(3, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(as_product(module, inputs), unit_outputs(module, module(inputs)))


class Valid(nn.Conv2d):
    """Without padding in torch's own word, and without any other option."""

    def forward(self, x):
        return functional.conv2d(x, self.weight, padding="valid")


class Bare(nn.Conv1d):
    """All options left to torch, after something else and a convolution with another weight."""

    def forward(self, x):
        return functional.conv1d(functional.conv1d(x.exp(), torch.ones(4, 1, 2), groups=4), weight=self.weight)


@pytest.mark.parametrize(("kind", "size"), [(Valid, (9, 8)), (Bare, (9,))])
def test_options_that_a_forward_leaves_out_are_torchs(kind, size):
    module, inputs = kind(4, 6, 3, bias=False, padding=1), torch.randn(3, 4, *size)
    torch.testing.assert_close(as_product(module, inputs), unit_outputs(module, module(inputs)))


class WithMore(nn.Conv2d):
    def forward(self, x, scale):
        return super().forward(x) * scale


def test_a_forward_that_takes_more_than_inputs_is_seen_by_its_own_options():
    torch.manual_seed(0)
    module, inputs = WithMore(2, 3, 3, stride=2, padding=1), torch.randn(2, 2, 7, 6)
    torch.testing.assert_close(as_product(module, inputs), unit_outputs(module, module(inputs, 1.0)))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 2), 1),
        (nn.Conv1d(2, 2, 3), 3),
        (nn.Conv2d(2, 2, 3), 9),
        (nn.Conv2d(2, 2, 3, stride=2), 4),
        (nn.Conv2d(2, 2, (4, 2), stride=(3, 2)), 2),
        (nn.Conv2d(2, 2, 3, stride=(1, 4)), 3),
        (nn.Conv1d(2, 2, 3, stride=2, dilation=2), 3),
        (nn.Conv3d(2, 2, 2, stride=(1, 1, 2)), 4),
        (nn.ConvTranspose2d(2, 2, (3, 2)), 6),
    ],
    ids=str,
)
def test_an_element_in_the_middle_stands_in_as_many_samples_as_the_overlap_says(module, expected):
    assert view_of(module).overlap(module) == expected
    channels = module.weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else module.weight.shape[1]
    axes = module.weight.dim() - 2
    ones = torch.ones((1, channels, *(12,) * axes) if axes else (5, channels)).requires_grad_()
    (counts,) = torch.autograd.grad(sum(chunk.sum() for chunk in input_samples(module, ones)), ones)
    assert counts.max() == expected


def test_positions_are_counted_over_all_images():
    module = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
    inputs = torch.randn(5, 4, 8, 9)
    windows = view_of(module).windows(module, inputs)
    assert [5, *windows.sizes] == [5, *module(inputs).shape[2:]]
    assert (windows.positions, type(windows.positions)) == (5 * windows.sizes[0] * windows.sizes[1], int)
