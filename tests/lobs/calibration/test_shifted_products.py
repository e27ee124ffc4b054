"""Second moments without unfolding, against those of the unfolded patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.calibration import accumulator, products
from lobs.calibration.shifted_products import ShiftedSums, shifts_pay
from lobs.layers.matrix import view_of, weight_matrix


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    strides=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    rows_at_once=st.sampled_from([2, 1024]),
)
def test_the_sums_are_those_of_the_patches(kernel, dilation, padding, strides, mode, rows_at_once):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
    stride = [1, *strides][: len(kernel)]
    module = kind(3, 2, kernel, stride, padding, dilation, padding_mode=mode).double()
    inputs = torch.randn(2, 3, *(13, 8, 9)[: len(kernel)], dtype=torch.float64)
    windows = view_of(module).windows(module, inputs)
    features = weight_matrix(module, False).shape[1]
    moment, total = torch.zeros(features, features).double(), torch.zeros(features).double()
    sums = ShiftedSums(windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "PRODUCT_ROWS", rows_at_once)
        sums.add(windows)
    sums.add_to(moment, total)
    patches = torch.cat(list(windows.samples()), 1)[0]
    torch.testing.assert_close(moment, patches.T @ patches, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(total, patches.sum(0), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("layer", [nn.Conv2d(40, 4, 3, padding=1), nn.ConvTranspose2d(40, 4, 3, padding=1)])
@pytest.mark.parametrize("bias", [True, False])
def test_statistics_are_the_same_to_rounding_whichever_way(layer, bias, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(type(layer)(40, 4, 3, padding=1, bias=bias))
    # Positive: the largest sums. The last images are too low for products of rows.
    batches = [torch.rand(count, 40, *size) for count, size in ((3, (16, 15)), (2, (16, 15)), (2, (4, 5)))]
    found = lobs.collect_statistics(model, batches)["0"]
    exact = lobs.collect_statistics(model.double(), [batch.double() for batch in batches])["0"]
    monkeypatch.setattr(accumulator, "shifts_pay", lambda windows: False)
    unfolded = lobs.collect_statistics(model.float(), batches)["0"]
    scale = exact.second_moment.abs().max()
    assert found.samples == unfolded.samples == 5 * 16 * 15 + 2 * 4 * 5
    for name in ("second_moment",):
        errors = [(getattr(one, name) - exact.second_moment).abs().max() / scale for one in (found, unfolded)]
        assert errors[0] < 1e-6
        assert errors[0] < 4 * errors[1] + 1e-9


def test_what_is_unfolded_as_before():
    images = torch.randn(1, 64, 32, 32)
    for module in (nn.Conv2d(64, 8, 3), nn.Conv2d(64, 8, (5, 1), dilation=2, stride=(1, 2))):
        assert shifts_pay(view_of(module).windows(module, images))
    for module in (nn.Conv2d(64, 8, 1), nn.Conv2d(64, 8, 3, stride=2), nn.Conv2d(64, 64, 3, groups=64)):
        assert not shifts_pay(view_of(module).windows(module, images))
    low = view_of(module := nn.Conv2d(64, 8, 3)).windows(module, images[:, :, :7])
    assert not shifts_pay(low)
