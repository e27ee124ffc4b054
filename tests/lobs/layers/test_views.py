"""Every kind of layer as a matrix, against its own forward pass and autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs
from lobs.layers.checks import check_product
from lobs.layers.matrix import (
    find_view,
    groups_of,
    input_samples,
    matrix_shape,
    set_weight_matrix,
    unit_outputs,
    view_of,
    weight_matrix,
)


class Conv1D(nn.Module):
    """As transformers has it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class SamePadding(nn.Conv2d):
    """As timm's Conv2dSame: as much padding as the input's size needs, more of it at the end."""

    def forward(self, x):
        total = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, s, d, k in zip(x.shape[2:], self.stride, self.dilation, self.kernel_size, strict=True)
        ]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        x = functional.pad(x, sides)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def shape(*size):
    return lambda: torch.randn(*size)


KINDS = {
    "linear": (nn.Linear(5, 3), shape(4, 5)),
    "linear on tokens": (nn.Linear(5, 3, bias=False), shape(2, 4, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), shape(3, 4, 9)),
    "conv1d, unbatched": (nn.Conv1d(4, 6, 3, padding="same", dilation=2), shape(4, 9)),
    "conv1d, circular": (nn.Conv1d(2, 3, 5, padding=2, padding_mode="circular"), shape(3, 2, 11)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2), shape(3, 4, 8, 9)),
    "conv2d, 1x1": (nn.Conv2d(4, 6, 1, stride=2), shape(3, 4, 8, 9)),
    "conv2d, long": (nn.Conv2d(2, 3, 3), shape(2, 2, 40, 40)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), shape(3, 2, 4, 7, 3)),
    "conv3d, unbatched": (nn.Conv3d(2, 4, 2), shape(2, 4, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), shape(3, 4, 5)),
    "transposed 2d": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 0), output_padding=(1, 2), dilation=(1, 2)),
        shape(3, 4, 5, 4),
    ),
    "transposed 2d, depthwise": (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4), shape(2, 4, 5, 4)),
    "transposed 2d, unbatched": (nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False), shape(2, 5, 4)),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 2, stride=(1, 2, 2), padding=1, groups=2), shape(2, 2, 3, 4, 3)),
    "transformers' Conv1D": (Conv1D(3, 5), shape(2, 4, 5)),
    "timm's Conv2dSame": (SamePadding(3, 4, 3, stride=2), shape(2, 3, 8, 7)),
    "timm's Conv2dSame, dilated": (SamePadding(4, 4, 3, dilation=2, groups=2), shape(2, 4, 8, 7)),
}


@pytest.fixture(params=KINDS)
def layer(request):
    torch.manual_seed(0)
    module, inputs = KINDS[request.param]
    return module.double(), inputs().double()


def test_the_output_is_the_matrix_times_the_samples(layer):
    module, inputs = layer
    found = unit_outputs(module, module(inputs))
    chunks = list(input_samples(module, inputs, chunk_bytes=1000))
    samples = torch.cat(chunks, 1)
    assert samples.shape[0] == groups_of(module)
    assert (len(found[0]), samples.shape[2]) == matrix_shape(module)
    weight = weight_matrix(module, False).unflatten(0, (groups_of(module), -1))
    expected = (samples @ weight.mT).movedim(0, 1).flatten(1) + (0 if module.bias is None else module.bias)
    torch.testing.assert_close(found, expected)
    check_product("it", module, inputs, module(inputs))


def test_the_matrix_goes_back_into_the_weight(layer):
    module, inputs = layer
    before, matrix = module(inputs), weight_matrix(module)
    with torch.no_grad():
        module.weight.zero_()
    set_weight_matrix(module, matrix)
    torch.testing.assert_close(module(inputs), before)
    view, places = view_of(module), torch.arange(module.weight.numel()).view(module.weight.shape)
    assert torch.equal(view.shaped(module, view.matrix(module, places)), places)
    with pytest.raises(ValueError, match="does not fit"):
        set_weight_matrix(module, matrix[:, 1:])


def test_gradients_in_the_weight_are_those_in_the_matrix(layer):
    module, inputs = layer
    output = module(inputs)
    direction = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, module.weight, direction)
    rows = unit_outputs(module, direction).unflatten(1, (groups_of(module), -1)).movedim(1, 0)
    samples = torch.cat(list(input_samples(module, inputs)), 1)
    torch.testing.assert_close(view_of(module).matrix(module, gradient), (rows.mT @ samples).flatten(0, 1))


def test_an_element_stands_in_as_many_samples_as_the_overlap_says(layer):
    module, inputs = layer
    ones = torch.ones_like(inputs).requires_grad_()
    total = sum(chunk.sum() for chunk in input_samples(module, ones)) if type(module) is not SamePadding else None
    if total is not None:
        (counts,) = torch.autograd.grad(total, ones)
        assert counts.max() <= view_of(module).overlap(module)


def test_a_weight_that_is_made_anew_in_the_forward_is_not_taken_for_the_layer_s():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    module, inputs = Standardised(2, 3, 3), torch.randn(2, 2, 5, 5)
    with pytest.raises(ValueError, match="does not give its weight times its inputs"):
        check_product("it", module, inputs, module(inputs))


def test_a_lazy_layer_is_one_like_the_others_once_it_has_values():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    inputs = torch.randn(12, 2, 5, 5)
    lazy(inputs)
    assert list(lobs.prune(lazy.eval(), batches=[inputs], method="magnitude", density=0.5).masks) == ["0", "3"]


def test_a_class_is_registered():
    class Scale(nn.Module):
        """Weight and bias of a Linear, its inputs doubled."""

        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), None

        def forward(self, x):
            return 2 * x @ self.weight.T

    class ScaleView(lobs.layers.View):
        def samples(self, module, inputs, chunk_bytes):
            yield 2 * inputs.reshape(1, -1, inputs.shape[-1])

        def unit_axis(self, outputs):
            return -1

        def part(self, inputs, outputs):
            return inputs, outputs

    assert find_view(Scale()) is None
    with pytest.raises(TypeError, match="kind must be a class of modules"):
        lobs.layers.register(Scale(), ScaleView())
    with pytest.raises(TypeError, match=r"view must be an object of a class derived from lobs.layers.View"):
        lobs.layers.register(Scale, ScaleView)
    lobs.layers.register(Scale, ScaleView())
    try:
        result = lobs.prune(nn.Sequential(Scale()), batches=[torch.randn(60, 5)], density=0.4)
        assert int((result.model[0].weight != 0).sum()) == 6
    finally:
        from lobs.layers.matrix import VIEWS

        del VIEWS[Scale]


@pytest.mark.parametrize("missing", ["samples", "unit_axis", "part"])
def test_a_view_has_to_tell_samples_units_and_a_part(missing):
    def told(self, *args):
        return args

    methods = dict.fromkeys(("samples", "unit_axis", "part"), told)
    whole = type("Whole", (lobs.layers.View,), methods)()
    assert (whole.groups(None), whole.overlap(None)) == (1, 1)
    del methods[missing]
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        type("Half", (lobs.layers.View,), methods)()
