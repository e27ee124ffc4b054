"""Running sums against products of all samples at once in float64, and the sample that they keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lobs.calibration import accumulator, products
from lobs.calibration.accumulator import InputSums, Reservoir, ResidualSums, combined, widened
from lobs.layers.matrix import input_samples, unit_outputs, weight_matrix


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Seven samples to a chunk and rows of products in blocks of three: every loop goes round several times."""
    monkeypatch.setattr(accumulator, "CHUNK_SAMPLES", 7)
    monkeypatch.setattr(products, "PRODUCT_ROWS", 3)


def with_ones(samples, bias):
    return torch.cat([samples, samples.new_ones(*samples.shape[:2], int(bias))], 2)


layers = {
    "groups": st.integers(1, 3),
    "features": st.integers(1, 8),
    "bias": st.booleans(),
    "parts": st.lists(st.integers(1, 20), min_size=1, max_size=4),
    "seed": st.integers(0, 99),
}


@settings(max_examples=20, deadline=None)
@given(**layers)
def test_the_mean_product_is_that_of_all_samples_however_they_come(groups, features, bias, parts, seed):
    torch.manual_seed(seed)
    samples = torch.randn(groups, sum(parts), features, dtype=torch.float64)
    whole, pieces = InputSums(bias), InputSums(bias)
    whole.add(samples)
    for part in samples.split(parts, dim=1):
        pieces.add(part)
    inputs = with_ones(samples, bias)
    expected = inputs.mT @ inputs / sum(parts)
    for sums in (whole, pieces):
        assert sums.samples == sum(parts)
        moment = sums.second_moment("any")
        torch.testing.assert_close(moment, expected, rtol=1e-12, atol=1e-13)
        assert torch.equal(moment, moment.mT)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), **layers)
def test_targets_come_back_from_residuals(rows, groups, features, bias, parts, seed):
    torch.manual_seed(seed)
    samples = torch.randn(groups, sum(parts), features, dtype=torch.float64)
    targets = torch.randn(sum(parts), groups * rows, dtype=torch.float64)
    inputs = with_ones(samples, bias)
    weight = torch.randn(groups * rows, inputs.shape[2], dtype=torch.float64)
    produced = torch.cat([x @ w.T for x, w in zip(inputs, weight.chunk(groups), strict=True)], 1)
    sums = ResidualSums(bias)
    for x, z, y in zip(samples.split(parts, 1), targets.split(parts), produced.split(parts), strict=True):
        sums.add(x, z - y, z)
    moment, power = sums.target(weight, inputs.mT @ inputs / sum(parts))
    expected = torch.cat([z.T @ x for z, x in zip(targets.chunk(groups, 1), inputs, strict=True)]) / sum(parts)
    torch.testing.assert_close(moment, expected, rtol=1e-11, atol=1e-12)
    assert power == pytest.approx(float(targets.square().sum(1).mean()), rel=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_residuals_of_a_convolution_need_no_patches(kind, bias, monkeypatch):
    torch.manual_seed(0)
    axes = [nn.Conv1d, nn.Conv2d, nn.Conv3d].index(kind) + 1
    layer = kind(3, 4, 3, padding=1, bias=bias).double()
    images = torch.randn(5, 3, *(9, 6, 5)[:axes], dtype=torch.float64)
    target = torch.randn(5, 4, *images.shape[2:], dtype=torch.float64)
    found, plain = ResidualSums(bias), ResidualSums(bias)
    monkeypatch.setattr(accumulator, "SHIFTED_POSITIONS", 300)  # a few images at a time
    found.add_call(layer, images, target - layer(images).detach(), target)
    monkeypatch.setattr(accumulator, "shifts_pay", lambda windows: False)
    plain.add_call(layer, images, target - layer(images).detach(), target)
    torch.testing.assert_close(found.moment, plain.moment)
    assert (found.power, found.samples) == (pytest.approx(plain.power), plain.samples)


def test_residuals_keep_the_digits_that_products_of_targets_lose():
    """A float32 target that differs from W x in its seventh digit: what is left to repair is known to five of them."""
    torch.manual_seed(0)
    samples, weight = 10 + torch.rand(300, 4), torch.randn(3, 4).double()
    residuals = 1e-6 * torch.randn(300, 3)
    sums = ResidualSums(bias=False)
    sums.add(samples[None], residuals, (samples @ weight.float().T) + residuals)
    psi = samples.double().T @ samples.double() / 300
    left = sums.target(weight, psi[None])[0] - weight @ psi
    expected = residuals.double().T @ samples.double() / 300
    assert (left - expected).abs().max() < 1e-5 * expected.abs().max()
    direct = (samples @ weight.float().T + residuals).T @ samples / 300 - (weight @ psi).float()
    assert (direct - expected).abs().max() > expected.abs().max()


def test_a_targets_power_is_never_negative():
    sums = ResidualSums(bias=False)
    samples, weight = torch.full((1, 5, 1), 1e4), torch.tensor([[1.0]])
    sums.add(samples, torch.full((5, 1), -1e4), torch.zeros(5, 1))
    assert sums.target(weight, torch.tensor([[[0.9e8]]]).double())[1] == 0  # a moment that rounding made too small


def test_half_precision_is_summed_in_float32():
    samples = torch.full((1, 20, 2), 300.0, dtype=torch.float16)  # a square of it is beyond float16
    sums = InputSums(bias=True, keep=4)
    sums.add(samples)
    assert sums.sample().dtype == torch.float32
    expected = torch.tensor([[9e4, 9e4, 300], [9e4, 9e4, 300], [300, 300, 1]], dtype=torch.float64)
    torch.testing.assert_close(sums.second_moment("any")[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_refused_wherever_it_stands(value):
    for place in (0, 4):
        samples = torch.ones(2, 9, 5)
        samples[1, 8, place] = value
        sums = InputSums(bias=True)
        sums.add(samples)
        with pytest.raises(ValueError, match=r"layer 'conv': its calibration inputs hold (NaN|infinite values)"):
            sums.second_moment("conv")


def test_every_subset_of_rows_is_as_likely_as_any_other():
    rows, draws = torch.arange(12.0)[None, :, None], 500
    counts = torch.zeros(12, 12)
    for seed in range(draws):
        reservoir = Reservoir(4, seed)
        for part in rows.split((5, 1, 6), dim=1):
            reservoir.add(part)
        kept = reservoir.rows()[:, 0].long()
        assert len(kept.unique()) == 4
        counts[kept[:, None], kept] += 1
    once, pairs = counts.diagonal(), counts[~torch.eye(12, dtype=torch.bool)]
    assert (once - draws / 3).abs().max() < 4.5 * (draws * 2 / 9) ** 0.5
    share = 4 / 12 * 3 / 11
    assert (pairs - draws * share).abs().max() < 4.5 * (draws * share * (1 - share)) ** 0.5


def test_reservoirs_that_are_fed_alike_keep_the_same_rows_of_every_group():
    sums, targets = InputSums(bias=True, keep=6), Reservoir(6)
    for start, count in ((0, 4), (4, 30), (34, 9)):
        numbers = torch.arange(float(start), start + count)
        sums.add(torch.stack([numbers, numbers + 100])[..., None])
        targets.add(-numbers[None, :, None])
    sample = sums.sample()
    assert sample.shape == (2, 6, 2)
    assert (sample[..., 1] == 1).all()
    assert torch.equal(sample[0, :, 0], sample[1, :, 0] - 100)
    assert torch.equal(sample[0, :, :1], -targets.rows())
    assert InputSums(bias=True).sample() is None


def test_processes_that_called_other_layers_are_named(monkeypatch):
    monkeypatch.setattr(accumulator, "gathered", lambda names: [names, ["stem", "left"], ["stem"]])
    with pytest.raises(ValueError, match="process 2 called the layers stem, process 0 left, stem: statistics can only"):
        combined({"left": InputSums(bias=False), "stem": InputSums(bias=False)})


@pytest.mark.parametrize("keep", [0, 8])
@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 6), nn.Conv2d(4, 6, 2, groups=2), nn.Conv2d(4, 6, 3, padding=1, bias=False)],
    ids=["linear", "grouped", "convolution"],
)
def test_residuals_go_with_their_samples_call_by_call(module, keep):
    """Chunk by chunk (every image of a grouped convolution is one), against all patches at once."""
    torch.manual_seed(0)
    module = module.double()
    bias, groups = module.bias is not None, getattr(module, "groups", 1)
    sums, inputs = ResidualSums(bias, keep), InputSums(bias, keep)
    rows, wanted = [], []
    for count in (3, 2):
        images = torch.randn(count, 4, dtype=torch.float64)
        images = images if isinstance(module, nn.Linear) else torch.randn(count, 4, 9, 8, dtype=torch.float64)
        produced = module(images).detach()
        target = torch.randn_like(produced)
        sums.add_call(module, images, target - produced, target)
        inputs.add_call(module, images)
        rows.append(torch.cat(list(input_samples(module, images)), 1))
        wanted.append(unit_outputs(module, target))
    x, z = with_ones(torch.cat(rows, 1), bias), torch.cat(wanted)
    assert sums.samples == inputs.samples == len(z)
    moment, power = sums.target(weight_matrix(module), x.mT @ x / len(z))
    expected = torch.cat([t.T @ own for t, own in zip(z.chunk(groups, 1), x, strict=True)]) / len(z)
    torch.testing.assert_close(moment, expected)
    assert power == pytest.approx(float(z.square().sum() / len(z)))
    if keep:
        sample = inputs.sample() if groups > 1 else inputs.sample()[None]
        places = (x[0][None] == sample[0][:, None]).all(2).double().argmax(1)
        assert torch.equal(sums.reservoir.rows(), z[places])
    else:
        assert inputs.sample() is sums.reservoir.rows() is None


def test_images_without_a_batch_and_images_of_other_sizes_add_up():
    torch.manual_seed(0)
    module = nn.Conv2d(2, 3, 3, padding=1).double()
    calls = [
        torch.randn(*shape, dtype=torch.float64) for shape in ((3, 2, 9, 8), (2, 9, 8), (2, 2, 4, 5), (1, 2, 12, 3))
    ]
    sums = InputSums(bias=True)
    for images in calls:
        sums.add_call(module, images)
    x = with_ones(torch.cat([part for images in calls for part in input_samples(module, images)], 1), True)
    assert sums.samples == x.shape[1] == 3 * 72 + 72 + 2 * 20 + 36
    torch.testing.assert_close(sums.second_moment("any"), x.mT @ x / x.shape[1])


def test_zeros_add_up_over_calls():
    sums = InputSums(bias=False)
    sums.add_zeros(torch.tensor([1, 0]), 4)
    sums.add_zeros(torch.tensor([2, 3]), 5)
    assert (sums.zeros.tolist(), sums.outputs) == ([3, 3], 9)


def test_half_precision_is_widened_and_nothing_else():
    for dtype, wide in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert widened(torch.ones(2, dtype=dtype)).dtype == wide


@pytest.mark.parametrize("scale", [1e-15, 1e-18, 1e-25, 1e-37])
@pytest.mark.parametrize("layer", [nn.Linear(6, 2), nn.Conv2d(64, 2, 3, padding=1), nn.Conv2d(3, 2, 3)])
def test_inputs_whose_squares_underflow_are_squared_in_float64(layer, scale):
    inputs = torch.randn((40, 6) if isinstance(layer, nn.Linear) else (40, layer.in_channels, 5, 5)) * scale
    found, expected = moments(layer, [torch.zeros_like(inputs), inputs])
    torch.testing.assert_close(found / scale**2, expected / scale**2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("far", [30.0, 1e3, 1e5])
@pytest.mark.parametrize("layer", [nn.Linear(6, 2), nn.Conv2d(64, 2, 3), nn.Conv2d(3, 2, 3)])
def test_spread_around_a_mean_far_from_zero_is_not_lost(layer, far):
    """The error of a change that the mean does not see."""
    inputs = far + torch.randn((400, 6) if isinstance(layer, nn.Linear) else (40, layer.in_channels, 5, 5))
    found, expected = moments(layer, inputs.split(20))
    change = torch.randn(3, len(found), dtype=torch.float64)
    change -= change.mean(1, keepdim=True)
    errors = [float(((change @ moment) * change).sum()) for moment in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize(("far", "scale"), [(1e3, 0.01), (0.0, 1e-25), (1e-20, 1e-22)])
@pytest.mark.parametrize("size", [1, 7])
def test_inputs_that_come_a_few_at_a_time_tell_it_too(far, scale, size):
    inputs = far + torch.randn(64, 8) * scale
    found, expected = moments(nn.Linear(8, 2), [torch.zeros(3, 8), *inputs.split(size)])
    change = torch.tensor([1.0, -1, 0, 0, 1, -1, 0, 0], dtype=torch.float64)
    assert float(change @ found @ change) == pytest.approx(float(change @ expected @ change), rel=1e-3)


def test_ordinary_inputs_are_multiplied_as_they_are():
    for inputs in (torch.randn(50, 6), torch.rand(50, 6) + 5, torch.ones(2000, 6)):
        sums = InputSums(bias=True)
        for batch in inputs.split(1):
            sums.add(batch[None])
        assert sums.double is False


def moments(layer, batches):
    """The second moment of a layer's inputs, and the same of all samples in float64."""
    sums = InputSums(bias=False)
    for batch in batches:
        sums.add_call(layer, batch)
    samples = torch.cat([part for batch in batches for part in input_samples(layer, batch)], 1)[0].double()
    return sums.second_moment("it")[0], samples.T @ samples / len(samples)
