"""Every kernel computes what the layer does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from helpers.networks import pruned
from lobs.export.kernels import COLUMNS, CSR, PATCHES, PIXELS, SEMI_STRUCTURED, alternatives

CALLS = [
    (nn.Linear(7, 5), (3, 7), {CSR, COLUMNS}),
    (nn.Linear(7, 5, bias=False), (2, 3, 7), {CSR, COLUMNS}),
    (nn.Linear(7, 5), (7,), {CSR, COLUMNS}),
    (nn.Conv2d(4, 6, 1), (5, 4, 9, 8), {PIXELS}),
    (nn.Conv2d(4, 6, 1, stride=2, bias=False), (4, 9, 8), {PIXELS}),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 9, 8), {PATCHES}),
    (nn.Conv2d(4, 6, (3, 2), dilation=2, padding="same", padding_mode="reflect"), (5, 4, 9, 8), {PATCHES}),
    (nn.Conv1d(4, 6, 3), (2, 4, 9), {PATCHES}),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 4), {PATCHES}),
    (nn.Conv1d(4, 6, 3, padding=1), (4, 9), {PATCHES}),
    (nn.Conv3d(2, 3, 2), (2, 4, 5, 4), {PATCHES}),
]


@pytest.mark.parametrize(("layer", "shape", "kernels"), CALLS)
def test_every_kernel_computes_the_layer(layer, shape, kernels, monkeypatch):
    monkeypatch.setattr("lobs.export.kernels.PATCH_BYTES", 2**13)  # several chunks of images
    pruned(layer)
    with torch.no_grad():
        layer.weight.flatten(1)[:, 1] = 0
        inputs = torch.randn(shape)
        found = alternatives(layer)
        assert set(found) == kernels
        for other in found.values():
            torch.testing.assert_close(other(inputs), layer(inputs))
            for twin in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
                torch.testing.assert_close(twin.double()(inputs.double()).float(), layer(inputs))
            file = io.BytesIO()
            torch.save(other.state_dict(), file)
            file.seek(0)
            twin = copy.deepcopy(other)
            for buffer in twin.buffers():
                buffer.zero_()
            twin.load_state_dict(torch.load(file))
            torch.testing.assert_close(twin(inputs), layer(inputs))


def test_no_kernel_for_classes_that_compute_otherwise():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    assert alternatives(Own(3, 3)) == alternatives(nn.ConvTranspose2d(2, 2, 3)) == {}


def test_sparse_rows_show_their_matrix_and_follow_a_change_of_type():
    layer = pruned(nn.Linear(7, 5), 0.5)
    other, inputs = alternatives(layer)[CSR], torch.randn(3, 7)
    assert torch.equal(other.weight.to_dense(), layer.weight)
    assert (other.out_features, other.in_features, other.contiguous) == (5, 7, False)
    assert other.extra_repr() == f"5 x 7, {int((layer.weight != 0).sum())} weights"
    assert other.crow_indices.dtype == other.col_indices.dtype == torch.int32
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), layer(inputs))
        torch.testing.assert_close(other.double()(inputs.double()), layer.double()(inputs.double()))
        for shape in ((3, 7), (2, 3, 7)):
            given = torch.randn(shape, dtype=torch.float64)
            other.contiguous = True
            assert other(given).is_contiguous()
            torch.testing.assert_close(other(given), layer(given))
    assert not list(other.parameters()) and not other.training


def test_unread_inputs_are_left_out_and_only_where_there_are_some():
    layer = pruned(nn.Linear(7, 5), 0.5)
    with torch.no_grad():
        layer.weight[0] = 1.0
        assert set(alternatives(layer)) == {CSR}
        layer.weight[:, [1, 4]] = 0.0
    other = alternatives(layer)[COLUMNS]
    assert other.read.tolist() == [0, 2, 3, 5, 6]
    assert torch.equal(other.weight, layer.weight[:, other.read])
    assert (other.out_features, other.in_features, other.training) == (5, 7, False)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_no_images_or_of_any_number_of_them_is_computed(groups, monkeypatch):
    layer = pruned(nn.Conv2d(4, 6, 3, padding=1, groups=groups))
    (other,) = alternatives(layer).values()
    with torch.no_grad():
        for images in (0, 1, 7):
            inputs = torch.randn(images, 4, 9, 8)
            for most in (1, 2**12, 2**20):
                monkeypatch.setattr("lobs.export.kernels.PATCH_BYTES", most)
                torch.testing.assert_close(other(inputs), layer(inputs))


def test_classes_of_convolutions_that_compute_otherwise_have_no_kernel():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    class Named(nn.Conv2d):
        """The same computation under another name."""

    assert alternatives(pruned(Own(2, 2, 3))) == {}
    assert set(alternatives(pruned(Named(2, 2, 3)))) == {PATCHES}
    assert set(alternatives(pruned(nn.Conv2d(2, 2, (1, 3))))) == {PATCHES}


def test_no_kernel_for_sparse_tensor_cores_where_there_are_none():
    layer = nn.Linear(64, 64).half()
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    assert SEMI_STRUCTURED not in alternatives(layer)
