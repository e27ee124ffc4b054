"""Second moments without unfolding, against those of the unfolded patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.calibration import accumulator
from lobs.calibration.shifted_products import shifted_products, shifts_pay
from lobs.layers.matrix import view_of


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    size=st.tuples(st.integers(10, 13), st.integers(10, 12)),
)
def test_the_sums_are_those_of_the_patches(kernel, dilation, padding, mode, size):
    module = nn.Conv2d(3, 2, kernel, padding=padding, dilation=dilation, padding_mode=mode).double()
    windows = view_of(module).windows(module, torch.randn(2, 3, *size, dtype=torch.float64))
    moment, total = shifted_products(windows)
    (patches,) = windows.samples()
    torch.testing.assert_close(moment, patches[0].T @ patches[0], rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(total, patches[0].sum(0), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("layer", [nn.Conv2d(40, 4, 3, padding=1), nn.ConvTranspose2d(40, 4, 3, padding=1)])
@pytest.mark.parametrize("bias", [True, False])
def test_statistics_are_the_same_to_rounding_whichever_way(layer, bias, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(type(layer)(40, 4, 3, padding=1, bias=bias))
    batches = [torch.rand(count, 40, 16, 15) for count in (3, 2)]  # positive: the largest sums
    found = lobs.collect_statistics(model, batches)["0"]
    exact = lobs.collect_statistics(model.double(), [batch.double() for batch in batches])["0"]
    monkeypatch.setattr(accumulator, "shifts_pay", lambda windows: False)
    unfolded = lobs.collect_statistics(model.float(), batches)["0"]
    scale = exact.second_moment.abs().max()
    assert found.samples == unfolded.samples == 5 * 16 * 15
    for name in ("second_moment",):
        errors = [(getattr(one, name) - exact.second_moment).abs().max() / scale for one in (found, unfolded)]
        assert errors[0] < 1e-6
        assert errors[0] < 4 * errors[1] + 1e-9


def test_what_is_unfolded_as_before():
    images = torch.randn(1, 64, 32, 32)
    assert shifts_pay(view_of(module := nn.Conv2d(64, 8, 3)).windows(module, images))
    for module in (nn.Conv2d(64, 8, 1), nn.Conv2d(64, 8, 3, stride=2), nn.Conv2d(64, 64, 3, groups=64)):
        assert not shifts_pay(view_of(module).windows(module, images))
    assert not shifts_pay(view_of(module := nn.Conv2d(3, 8, 3)).windows(module, images[:, :3]))
