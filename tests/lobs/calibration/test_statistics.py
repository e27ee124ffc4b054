"""Streamed statistics against float64 on the whole data at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from lobs.calibration.accumulator import CHUNK_SAMPLES, symmetrise


def dense_moment(samples, bias):
    samples = samples.double()
    if bias:
        samples = torch.cat([samples, torch.ones(len(samples), 1, dtype=torch.float64)], 1)
    return samples.T @ samples / len(samples)


def assert_moments_agree(moment, expected):
    """To float32's rounding of a sum of products: an entry's terms are as large as its two diagonal entries say."""
    size = expected.diagonal().sqrt()
    assert ((moment - expected).abs() <= 1e-6 * torch.outer(size, size) + 1e-300).all()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 300),
    batch=st.integers(1, 77),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_second_moments_of_every_layer(count, batch, scale, bias, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3))
    inputs = torch.randn(count, 6) * scale
    statistics = lobs.collect_statistics(model, inputs.split(batch))
    assert list(statistics) == ["0", "2"]
    first, second = statistics["0"], statistics["2"]
    assert (first.samples, first.inputs, first.bias, first.features) == (count, count, bias, 6)
    assert_moments_agree(first.second_moment, dense_moment(inputs, bias))
    hidden = model[:2](inputs).detach()
    assert_moments_agree(second.second_moment, dense_moment(hidden, True))
    torch.testing.assert_close(first.zero_fraction, (hidden == 0).double().mean(0))


def test_many_float32_samples_lose_nothing_that_matters():
    torch.manual_seed(0)
    samples = torch.rand(20 * CHUNK_SAMPLES + 17, 8) + 100  # a large mean: the worst case for a float32 sum
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    relative = (statistics.second_moment / dense_moment(samples, True) - 1).abs().max()
    assert relative < 1e-6


def test_wide_moments_are_symmetric_to_the_bit():
    moment = torch.randn(2, 7, 7, dtype=torch.float64)
    expected = (moment + moment.mT) / 2
    symmetrise(moment, block=3)
    assert torch.equal(moment, expected)
    assert torch.equal(moment, moment.mT)
    mirrored = moment.tril() + 5 * torch.randn(2, 7, 7, dtype=torch.float64).triu(1)
    symmetrise(mirrored, lower_only=True, block=3)
    assert torch.equal(mirrored, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_wide_layers_are_multiplied_in_blocks_of_rows(monkeypatch, bias):
    monkeypatch.setattr("lobs.calibration.accumulator.PRODUCT_ROWS", 4)
    torch.manual_seed(0)
    inputs, model = torch.randn(3, 9, 20, 40).double(), nn.Conv2d(9, 2, 1, bias=bias).double()
    statistics = lobs.collect_statistics(nn.Sequential(model), inputs.split(2))["0"]
    assert (statistics.samples, statistics.features) == (2400, 9)
    assert_moments_agree(statistics.second_moment, dense_moment(inputs.movedim(1, -1).reshape(-1, 9), bias))
    assert torch.equal(statistics.second_moment, statistics.second_moment.T)


def test_zeros_are_counted_over_all_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU()).double()
    inputs = torch.randn(3, 2, 40, 30, dtype=torch.float64)  # so many positions that patches are left as they lie
    layer = lobs.collect_statistics(model, inputs.split(2))["0"]
    torch.testing.assert_close(layer.zero_fraction, (model(inputs) == 0).double().mean((0, 2, 3)))
    patches = nn.functional.unfold(inputs, 3, padding=1).movedim(1, 2).reshape(-1, 18)
    torch.testing.assert_close(layer.second_moment, dense_moment(patches, True))


def test_convolution_counts_every_position_as_a_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU()).double()
    images = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    layer = lobs.collect_statistics(model, [images])["0"]
    patches = torch.nn.functional.unfold(images, 3, padding=1, stride=2)  # [5, 2 * 9, 16]
    assert (layer.samples, layer.inputs, layer.groups) == (5 * 16, 5, 2)
    for group in range(2):
        samples = patches[:, group * 9 : group * 9 + 9].movedim(1, 2).reshape(-1, 9)
        torch.testing.assert_close(layer.group(group).second_moment, dense_moment(samples, True))
        expected = (model[0](images)[:, 2 * group : 2 * group + 2] <= 0).double().mean((0, 2, 3))
        torch.testing.assert_close(layer.group(group).zero_fraction, expected)


def test_a_layer_called_twice_sees_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x):
            return self.layer(self.layer(x))

    model, inputs = Twice(), torch.randn(4, 3, dtype=torch.float64)
    layer = lobs.collect_statistics(model, [inputs])["layer"]
    both = torch.cat([inputs, model.layer(inputs).detach()])
    assert (layer.samples, layer.inputs) == (8, 4)
    torch.testing.assert_close(layer.second_moment, dense_moment(both, True))


def test_training_flags_come_back_and_targets_are_ignored():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    batches = [(torch.randn(4, 3), torch.zeros(4))]
    lobs.collect_statistics(model, batches)
    assert [module.training for module in model] == [True, False, True] and model.training


def test_save_and_load(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    statistics = lobs.collect_statistics(model, [torch.randn(9, 3)])
    statistics.save(tmp_path / "deep" / "statistics.safetensors")
    loaded = lobs.Statistics.load(tmp_path / "deep" / "statistics.safetensors")
    assert list(loaded) == ["0", "2"]
    for name, layer in statistics.items():
        assert torch.equal(loaded[name].second_moment, layer.second_moment)
        assert torch.equal(loaded[name].zero_fraction, layer.zero_fraction)
        assert (loaded[name].samples, loaded[name].inputs, loaded[name].bias) == (9, 9, layer.bias)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["statistics.safetensors"]


def test_the_loss_curvature_is_autograds_diagonal():
    """OBD's h_qq: the diagonal of the Hessian of the mean cross entropy over all batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    model = model.double()
    inputs, targets = torch.randn(9, 1, 3, 3, dtype=torch.float64), torch.randint(3, (9,))
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    statistics = lobs.collect_statistics(model, batches, loss="cross_entropy")
    for name, layer in statistics.items():
        module = model.get_submodule(name)
        for parameter, ours in (("weight", layer.loss_curvature[:, :-1]), ("bias", layer.loss_curvature[:, -1])):

            def loss(value, key=f"{name}.{parameter}"):
                outputs = torch.func.functional_call(model, {key: value}, inputs)
                return nn.functional.cross_entropy(outputs, targets)

            value = getattr(module, parameter).detach()
            hessian = torch.autograd.functional.hessian(loss, value).reshape(value.numel(), value.numel())
            torch.testing.assert_close(ours.flatten(), hessian.diagonal())
    with pytest.raises(TypeError, match=r"batches of \(input, target\)"):
        lobs.collect_statistics(model, [inputs], loss="cross_entropy")
    with pytest.raises(ValueError, match="unknown loss 'nll': accepted are cross_entropy, mse"):
        lobs.collect_statistics(model, batches, loss="nll")


def test_kept_samples_are_a_uniform_sample_of_the_inputs():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    inputs = torch.arange(400.0).reshape(200, 2)
    statistics = lobs.collect_statistics(model, inputs.split(30), keep_samples=50)
    sample = statistics["0"].inputs_sample
    assert sample.shape == (50, 3)
    assert (sample[:, -1] == 1).all()
    rows = (sample[:, 0] / 2).sort().values
    assert len(rows.unique()) == 50, "an input was drawn twice"
    assert 60 < rows.mean() < 140
    assert statistics["2"].inputs_sample.shape == (50, 3)
    hidden = torch.relu(model[0](sample[:, :2]))
    torch.testing.assert_close(statistics["2"].inputs_sample, hidden.detach())
    assert [layer.last for layer in statistics.values()] == [False, True]
    few = lobs.collect_statistics(model, [inputs[:7]], keep_samples=50)
    assert few["0"].inputs_sample.shape == (7, 3)


def test_errors_name_what_is_wrong():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="batches is empty"):
        lobs.collect_statistics(model, [])
    with pytest.raises(ValueError, match=r"layer '0': .*NaN"):
        lobs.collect_statistics(model, [torch.full((2, 3), float("nan"))])
    with pytest.raises(TypeError, match="got dict"):
        lobs.collect_statistics(model, [{"x": 1}])
    with pytest.raises(KeyError, match=r"no statistics of layer 'x'; there are those of 0, 1"):
        lobs.collect_statistics(model, [torch.randn(2, 3)])["x"]

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    assert list(lobs.collect_statistics(Half(), [torch.randn(2, 2)])) == ["used"]
    with pytest.raises(ValueError, match="'spare' is never called"):
        lobs.collect_statistics(Half(), [torch.randn(2, 2)], layers=["spare"])

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="answers the same inputs differently"):
        lobs.collect_statistics(nn.Sequential(Noisy(3, 3)), [torch.randn(2, 3)])
