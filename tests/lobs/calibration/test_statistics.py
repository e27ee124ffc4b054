"""Streamed statistics against float64 on the whole data at once."""

from dataclasses import replace
from math import isnan

import pytest
import torch
from torch import nn

import lobs
from helpers.moments import dense_moment
from lobs.calibration.accumulator import CHUNK_SAMPLES
from lobs.calibration.statistics import check_fit, layer_error


def test_many_float32_samples_lose_nothing_that_matters():
    torch.manual_seed(0)
    samples = torch.rand(20 * CHUNK_SAMPLES + 17, 8) + 100  # a large mean: the worst case for a float32 sum
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    relative = (statistics.second_moment / dense_moment(samples, True) - 1).abs().max()
    assert relative < 1e-6


def test_save_and_load(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    statistics = lobs.collect_statistics(model, [torch.randn(9, 3)])
    statistics.save(tmp_path / "deep" / "statistics.safetensors")
    loaded = lobs.Statistics.load(tmp_path / "deep" / "statistics.safetensors")
    assert list(loaded) == ["0", "2"]
    assert vars(loaded.calls) == vars(statistics.calls) and loaded.calls.network
    for name, layer in statistics.items():
        assert torch.equal(loaded[name].second_moment, layer.second_moment)
        assert torch.equal(loaded[name].zero_fraction, layer.zero_fraction)
        assert (loaded[name].samples, loaded[name].inputs, loaded[name].bias) == (9, 9, layer.bias)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["statistics.safetensors"]


def test_statistics_with_targets_are_saved(tmp_path):
    layer = replace(
        lobs.LayerStatistics.from_samples(torch.randn(9, 3)),
        target_moment=torch.randn(2, 3, dtype=torch.float64),
        target_power=1 / 3,
        target_sample=torch.randn(5, 2),
    )
    lobs.Statistics({"a": layer}).save(tmp_path / "s.safetensors")
    loaded = lobs.Statistics.load(tmp_path / "s.safetensors")["a"]
    assert torch.equal(loaded.target_moment, layer.target_moment)
    assert torch.equal(loaded.target_sample, layer.target_sample)
    assert loaded.target_power == layer.target_power
    with pytest.raises(ValueError, match="hold no targets: sequential pruning collects them"):
        lobs.LayerStatistics.from_samples(torch.randn(9, 3)).target_floor()


def test_layers_that_are_read_later_are_those_of_the_file_that_was_opened(tmp_path):
    path = tmp_path / "s.safetensors"
    first, second = (lobs.LayerStatistics.from_samples(torch.randn(9, 3)) for _ in range(2))
    lobs.Statistics({"a": first, "b": first}).save(path)
    opened = lobs.Statistics.load(path, lazy=True)
    assert torch.equal(opened["a"].second_moment, first.second_moment)
    lobs.Statistics({"a": second, "b": second}).save(path)
    assert torch.equal(opened["b"].second_moment, first.second_moment)
    assert torch.equal(lobs.Statistics.load(path)["b"].second_moment, second.second_moment)


def test_a_damaged_layer_is_noticed_when_it_is_read(tmp_path):
    path = tmp_path / "s.safetensors"
    lobs.Statistics({"a": lobs.LayerStatistics.from_samples(torch.randn(9, 3))}).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    opened = lobs.Statistics.load(path, lazy=True)
    with pytest.raises(ValueError, match=r"s.safetensors is damaged .*another checksum.*: collect them again"):
        opened["a"]
    with pytest.raises(ValueError, match=r"there is no file of statistics .*none"):
        lobs.Statistics.load(tmp_path / "none")


def test_the_floor_is_what_least_squares_leave():
    torch.manual_seed(0)
    x, z = torch.randn(200, 5, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    z += 0.1 * x[:, :3]
    layer = replace(
        lobs.LayerStatistics.from_samples(x), target_moment=z.T @ x / 200, target_power=float(z.square().sum() / 200)
    )
    left = z - x @ torch.linalg.lstsq(x, z).solution
    floor = float(left.square().sum() / 200)
    assert floor > layer.target_power / 2  # hardly anything is explained
    assert layer.target_floor() == pytest.approx(floor)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_error_of_a_change_is_the_mean_square_of_what_it_does(groups):
    torch.manual_seed(0)
    samples, change = torch.randn(groups, 50, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    moments = samples.mT @ samples / 50
    done = [x @ dw.T for x, dw in zip(samples, change.chunk(groups), strict=True)]
    expected = sum(float(part.square().sum() / 50) for part in done)
    assert layer_error(change, moments) == pytest.approx(expected)
    if groups == 1:
        assert layer_error(change, moments[0]) == pytest.approx(expected)


def test_scaled_units_have_scaled_targets_and_curvature():
    torch.manual_seed(0)
    x, scale = torch.randn(9, 3), torch.tensor([0.5, 3.0])
    targets, curvature, sample = torch.randn(2, 3).double(), torch.rand(2, 3).double(), torch.randn(5, 2)
    layer = replace(
        lobs.LayerStatistics.from_samples(x),
        target_moment=targets,
        target_power=1.0,
        target_sample=sample,
        loss_curvature=curvature,
    )
    scaled = layer.with_scaled_units(scale)
    # z' = s z, and w' = s w sees the second derivative in w over s^2.
    torch.testing.assert_close(scaled.target_moment, targets * scale[:, None].double())
    torch.testing.assert_close(scaled.target_sample, sample * scale)
    torch.testing.assert_close(scaled.loss_curvature, curvature / scale[:, None].double() ** 2)
    assert scaled.target_power is None
    assert torch.equal(scaled.second_moment, layer.second_moment)


def test_statistics_of_another_shape_do_not_fit_whatever_else_does():
    def found(layer, *shape):
        return lobs.collect_statistics(nn.Sequential(layer), [torch.randn(5, *shape)])["0"]

    linear, grouped = nn.Linear(4, 6), nn.Conv2d(4, 6, 1, groups=2)
    check_fit("0", linear, found(nn.Linear(4, 6), 4))
    check_fit("0", grouped, found(nn.Conv2d(4, 6, 1, groups=2), 4, 3, 3))
    for module, other in (
        (linear, found(nn.Linear(5, 6), 5)),
        (linear, found(nn.Linear(4, 7), 4)),
        (grouped, found(nn.Conv2d(2, 6, 1), 2, 3, 3)),
        (grouped, found(nn.Conv2d(4, 8, 1, groups=2), 4, 3, 3)),
        (grouped, found(nn.Conv2d(8, 6, 1, groups=2), 8, 3, 3)),
    ):
        with pytest.raises(ValueError, match="does not fit statistics of"):
            check_fit("0", module, other)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_errors_and_floors_are_those_of_the_samples(groups, bias):
    """E||W x - z||^2 and the least of it, group by group, with an input that is always zero."""
    torch.manual_seed(0)
    x = torch.randn(groups, 60, 5, dtype=torch.float64)
    x[:, :, 2] = 0
    z, weight = torch.randn(60, 3 * groups, dtype=torch.float64), torch.randn(3 * groups, 5 + bias, dtype=torch.float64)
    x = torch.cat([x, x.new_ones(groups, 60, int(bias))], 2)
    targets = z.chunk(groups, 1)
    moments = x.mT @ x / 60
    layer = lobs.LayerStatistics(
        moments if groups > 1 else moments[0],
        60,
        60,
        bias,
        target_moment=torch.cat([t.T @ own for t, own in zip(targets, x, strict=True)]) / 60,
        target_power=float(z.square().sum() / 60),
    )
    produced = [own @ w.T for own, w in zip(x, weight.chunk(groups), strict=True)]
    left = sum(float((y - t).square().sum() / 60) for y, t in zip(produced, targets, strict=True))
    assert layer.target_error(weight) == pytest.approx(left)
    best = [own @ torch.linalg.lstsq(own, t, driver="gelsd").solution for own, t in zip(x, targets, strict=True)]
    floor = sum(float((y - t).square().sum() / 60) for y, t in zip(best, targets, strict=True))
    assert layer.target_floor() == pytest.approx(floor)
    assert (layer.features, layer.groups, layer.kept_samples) == (5, groups, 0)


def test_one_group_is_a_layer_of_its_own():
    layer = lobs.LayerStatistics(
        torch.arange(2.0 * 9).view(2, 3, 3),
        8,
        4,
        True,
        zero_fraction=torch.arange(4.0),
        loss_curvature=torch.arange(12.0).view(4, 3),
        inputs_sample=torch.arange(2.0 * 5 * 3).view(2, 5, 3),
        target_moment=-torch.arange(12.0).view(4, 3),
        target_power=3.0,
        target_sample=torch.arange(20.0).view(5, 4),
    )
    assert (layer.features, layer.groups, layer.kept_samples) == (2, 2, 5)
    own = layer.group(1)
    assert torch.equal(own.second_moment, layer.second_moment[1])
    assert own.zero_fraction.tolist() == [2, 3]
    assert own.loss_curvature.tolist() == [[6, 7, 8], [9, 10, 11]]
    assert own.target_moment.tolist() == [[-6, -7, -8], [-9, -10, -11]]
    assert torch.equal(own.inputs_sample, layer.inputs_sample[1])
    assert torch.equal(own.target_sample, layer.target_sample[:, 2:])
    assert (own.target_power, own.samples, own.inputs, own.bias, own.groups, own.kept_samples) == (
        None,
        8,
        4,
        True,
        1,
        5,
    )
    assert own.group(0) is own


@pytest.mark.parametrize(
    "damage",
    [
        {"samples": 0},
        {"samples": 9.0},
        {"inputs": 0},
        {"inputs": -1},
        {"inputs": True},
        {"bias": 1},
        {"last": None},
        {"second_moment": torch.ones(4)},
        {"second_moment": torch.ones(1, 1, 4, 4)},
        {"second_moment": torch.ones(3, 4)},
        {"second_moment": torch.ones(2, 3, 4)},
        {"inputs_sample": torch.ones(5, 3)},
        {"loss_curvature": torch.ones(2, 3)},
        {"target_moment": torch.ones(2, 5)},
        {"zero_fraction": torch.ones(3)},
        {"zero_fraction": torch.tensor(1.0)},
        {"target_moment": torch.ones(3, 4)},
    ],
    ids=lambda damage: " ".join(
        f"{k} {tuple(v.shape) if isinstance(v, torch.Tensor) else v}" for k, v in damage.items()
    ),
)
def test_a_file_of_what_no_layer_has_is_damaged(tmp_path, damage):
    layer = lobs.LayerStatistics.from_samples(torch.randn(9, 3), bias=True)
    layer = replace(layer, zero_fraction=torch.ones(2), loss_curvature=torch.ones(2, 4), inputs_sample=torch.ones(5, 4))
    path = tmp_path / "s.safetensors"
    lobs.Statistics({"a": layer}).save(path)
    assert lobs.Statistics.load(path)["a"].samples == 9
    lobs.Statistics({"a": replace(layer, **damage)}).save(path)
    with pytest.raises(
        ValueError, match=r"damaged .*layer 'a': TypeError tensors and numbers that do not belong together"
    ):
        lobs.Statistics.load(path)


def test_statistics_are_a_mapping_that_says_what_it_holds():
    layers = {
        "a": lobs.LayerStatistics.from_samples(torch.randn(9, 3)),
        "b": lobs.LayerStatistics.from_samples(torch.randn(7, 4), bias=True),
    }
    statistics = lobs.Statistics(layers)
    assert repr(statistics) == "Statistics(a: 9 samples of 3; b: 7 samples of 4 + bias)"
    assert (len(statistics), list(statistics), "a" in statistics, "c" in statistics) == (2, ["a", "b"], True, False)
    assert statistics["b"] is layers["b"]
    assert statistics.calls.called == ["a", "b"]
    with pytest.raises(KeyError, match="no statistics of layer 'c'; there are those of a, b"):
        statistics["c"]


def test_samples_are_a_matrix_with_rows():
    for samples in (torch.randn(9), torch.randn(2, 9, 3), torch.randn(0, 3)):
        with pytest.raises(ValueError, match=r"samples must be \[n, features\] with n >= 1, got"):
            lobs.LayerStatistics.from_samples(samples)
    one = lobs.LayerStatistics.from_samples(torch.tensor([[2.0, 3.0]]), bias=True)
    assert (one.samples, one.inputs, one.second_moment.tolist()) == (1, 1, [[4, 6, 2], [6, 9, 3], [2, 3, 1]])


def test_an_error_is_never_negative():
    """Rounding may make a second moment indefinite."""
    assert layer_error(torch.ones(1, 1), -torch.ones(1, 1)) == 0
    layer = replace(
        lobs.LayerStatistics.from_samples(torch.ones(4, 1)),
        target_moment=torch.full((1, 1), 2.0).double(),
        target_power=3.9,
    )
    assert layer.target_error(torch.full((1, 1), 2.0)) == layer.target_floor() == 0


def test_one_sample_of_one_input_is_enough_for_a_file(tmp_path):
    layer = lobs.LayerStatistics.from_samples(torch.randn(1, 3))
    lobs.Statistics({"a": layer}).save(tmp_path / "s.safetensors")
    assert (lobs.Statistics.load(tmp_path / "s.safetensors")["a"].samples, layer.inputs) == (1, 1)


@pytest.mark.parametrize(("small", "counts"), [(1e-3, True), (1e-6, False)])
def test_the_floor_leaves_out_what_float32_does_not_show_group_by_group(small, counts):
    """An input whose square is less than 1e-9 of its group's largest could explain a target, and is not asked."""
    torch.manual_seed(0)
    x = torch.randn(2, 80, 3, dtype=torch.float64)
    z = 3 * x[:, :, 2].T + 0.1 * torch.randn(80, 2, dtype=torch.float64)
    x[:, :, 2] *= small
    x[1] *= 1e-7  # a group of its own
    layer = lobs.LayerStatistics(
        x.mT @ x / 80,
        80,
        80,
        False,
        target_moment=torch.stack([t @ own for t, own in zip(z.T, x, strict=True)]) / 80,
        target_power=float(z.square().sum() / 80),
    )
    seen = x if counts else x[:, :, :2]
    scaled = [own / own.square().mean(0).sqrt() for own in seen]
    left = [t - own @ torch.linalg.lstsq(own, t[:, None]).solution[:, 0] for t, own in zip(z.T, scaled, strict=True)]
    assert layer.target_floor() == pytest.approx(sum(float(part.square().sum() / 80) for part in left), rel=1e-5)


def test_the_error_of_a_wide_layer_is_a_number_where_float32_has_none():
    change = torch.randn(2, 8200, dtype=torch.float64) * 1e10
    moment = torch.eye(8200, dtype=torch.float64).mul_(1e30)
    assert layer_error(change, moment) == pytest.approx(1e30 * float(change.square().sum()))
    change[0, 0] = float("nan")
    assert isnan(layer_error(change, moment))
