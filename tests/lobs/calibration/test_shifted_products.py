"""Second moments without unfolding, against those of the unfolded patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.calibration import accumulator, products, shifted_products
from lobs.calibration.shifted_products import ShiftedSums, shifts_pay
from lobs.layers.matrix import view_of, weight_matrix


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch):
    """Sixteen channels are enough to go by columns."""
    monkeypatch.setattr(shifted_products, "FEWEST_FEATURES", 16)


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    strides=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    rows_at_once=st.sampled_from([2, 1024]),
    chunk=st.sampled_from([7, 4096]),
    fewest=st.sampled_from([1, 1, 99]),
)
def test_the_sums_are_those_of_the_patches(kernel, dilation, padding, strides, mode, rows_at_once, chunk, fewest):
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
        patch.setattr(shifted_products, "CHUNK_SAMPLES", chunk)
        patch.setattr(shifted_products, "FEWEST_FEATURES", fewest)
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"padding": 1}, {0, 9}), ({"kernel_size": 4, "padding": "same"}, {0, 9, 10}), ({"padding": 2}, {0, 1, 10, 11})],
)
def test_columns_go_the_way_of_rows_between_zeros(settings, expected):
    module = nn.Conv2d(16, 4, **{"kernel_size": 3, **settings})
    windows = view_of(module).windows(module, torch.rand(2, 16, 9, 8))
    assert shifted_products._zero_columns(windows) == expected


@pytest.mark.parametrize(
    "settings",
    [{"padding": 0}, {"padding_mode": "reflect"}, {"stride": (1, 2)}, {"kernel_size": (3, 1), "padding": 0}],
)
def test_columns_are_unfolded_elsewhere(settings):
    module = nn.Conv2d(16, 4, **{"kernel_size": 3, "padding": 1, **settings})
    assert shifted_products._zero_columns(view_of(module).windows(module, torch.rand(2, 16, 9, 8))) is None
    few = nn.Conv2d(3, 4, 3, padding=1)
    assert shifted_products._zero_columns(view_of(few).windows(few, torch.rand(2, 3, 9, 8))) is None


def test_zero_borders_leave_hardly_anything_beside_a_product_for_each_difference(monkeypatch):
    module, calls = nn.Conv2d(16, 4, 3, padding=1), []
    windows, plain = view_of(module).windows(module, torch.rand(2, 16, 9, 8)), shifted_products._products
    monkeypatch.setattr(shifted_products, "_products", lambda *args: calls.append(args) or plain(*args))
    ShiftedSums(windows).add(windows)
    # Three differences of rows and two rows next to the border; each with two columns next to it.
    assert len(calls) == 5 + 2 * 5
    assert sum(len(pairs) for pairs, *_ in calls) == 3 + 5 + 5 + 2 * 3 + 2 * 5


@pytest.mark.parametrize(("value", "expected"), [(1e30, "infinite values"), (float("nan"), "NaN")])
def test_sums_that_overflow_are_no_nan(value, expected):
    images = torch.rand(2, 16, 9, 8)
    images[1, 2, 0, 0] = value
    with pytest.raises(ValueError, match=f"hold {expected}"):
        lobs.collect_statistics(nn.Sequential(nn.Conv2d(16, 4, 3, padding=1)), [images])


def test_inputs_that_are_always_zero_stay_zero_and_bright_borders_cost_no_digits():
    """A channel that only borders excite: a difference of large sums would leave rounding in its place."""
    torch.manual_seed(0)
    for ratio in (1.0, 1e4):
        images = torch.randn(64, 16, 16, 16)
        images[..., 0] *= ratio
        images[:, 0, :, 1:] = 0
        found = lobs.collect_statistics(nn.Sequential(nn.Conv2d(16, 4, 3, padding=1, bias=False)), [images])["0"]
        patches = nn.functional.unfold(images.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        exact = (patches.square().sum(0) / len(patches)).clamp_min(0)
        diagonal = found.second_moment.diagonal()
        assert (exact == 0).sum() == 3  # the kernel's last column never meets them
        assert torch.equal(diagonal == 0, exact == 0)
        assert ((diagonal - exact).abs() <= 2e-6 * exact).all()


def test_images_one_column_wide():
    torch.manual_seed(0)
    images = torch.randn(8, 16, 24, 1)
    moment = lobs.collect_statistics(nn.Sequential(nn.Conv2d(16, 4, 3, padding=1, bias=False)), [images])["0"]
    assert (moment.second_moment.diagonal() == 0).sum() == 96
    assert moment.second_moment.diagonal().min() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_few_channels_that_hardly_vary_lose_no_digits(channels):
    images = torch.full((8, channels, 64, 64), 1.2345678)
    patches = nn.functional.unfold(images.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    exact = patches.T @ patches / len(patches)
    layer = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
    found = lobs.collect_statistics(nn.Sequential(layer), [images])["0"].second_moment
    assert (found - exact).abs().max() < 1e-6 * exact.max()


def test_a_later_call_without_outputs_adds_nothing():
    layer = nn.ConvTranspose2d(16, 2, 4, stride=2, padding=(0, 2), dilation=(2, 1), output_padding=(1, 0))
    batches = [torch.randn(3, 16, 2, 13), torch.randn(1, 16, 11, 1)]
    found, alone = (lobs.collect_statistics(nn.Sequential(layer), some)["0"] for some in (batches, batches[:1]))
    assert found.samples == alone.samples
    torch.testing.assert_close(found.second_moment, alone.second_moment)
