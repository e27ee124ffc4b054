"""A layer's step: its error against the samples themselves, and a file that brings it back to the last digit."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from lobs.base.tensor_files import layer_file
from lobs.layers.matrix import weight_matrix
from lobs.schedule.layer_result import LayerResult, written
from lobs.solvers import make


def taken(method="exact_obs", targets=False, name="layer", **options):
    """A step in the middle of a small layer's path, with the samples that it was computed from."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    inputs = torch.cat([samples, torch.ones(50, 1, dtype=torch.float64)], 1)
    weight = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    outputs = inputs @ weight.T
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    if targets:
        outputs = outputs + torch.randn(50, 4, generator=generator, dtype=torch.float64)
        moment, power = outputs.T @ inputs / 50, float(outputs.square().sum(1).mean())
        statistics = replace(statistics, target_moment=moment, target_power=power)
    path = make(method, **options)(weight, statistics)
    return LayerResult.taken(name, 2 * weight, path, 13, path.at(13), 1.5), path, inputs, outputs


def assert_same(found, expected):
    for entry in fields(LayerResult):
        one, other = getattr(found, entry.name), getattr(expected, entry.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), entry.name
        else:
            assert type(one) is type(other) and one == other, entry.name


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("method", ["exact_obs", "magnitude"])
def test_the_error_is_that_of_the_outputs(method, targets):
    step, path, inputs, outputs = taken(method, targets)
    expected = float((inputs @ step.weight.T - outputs).square().sum(1).mean())
    assert step.error == pytest.approx(expected, rel=1e-9)
    assert step.relative_error == pytest.approx(expected / float(outputs.square().sum(1).mean()), rel=1e-9)
    assert int((~step.mask).sum()) == 13
    assert (step.features, step.removable, step.seconds) == (6, 24, 1.5)
    assert step.damping == path.damping
    assert step.sensitivity_threshold == path.sensitivity_threshold(13)
    assert (step.sensitivity_threshold is None) == (method == "magnitude")


def test_a_layer_without_outputs_loses_nothing():
    path = make("magnitude")(torch.randn(3, 4), lobs.LayerStatistics.from_samples(torch.zeros(5, 4)))
    step = LayerResult.taken("dead", path.weight, path, 12, path.at(12), 0.0)
    assert (step.error, step.relative_error) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["layer", "blocks.0.conv/1", "..", "ünit 100%"])
@pytest.mark.parametrize("method", ["exact_obs", "magnitude"])
def test_a_saved_step_comes_back(tmp_path, method, name):
    step = taken(method, name=name)[0]
    step.save(tmp_path / "steps")
    assert [file.parent for file in tmp_path.rglob("*.*")] == [tmp_path / "steps"]
    assert_same(LayerResult.load(tmp_path / "steps", name, step.trained), step)
    assert LayerResult.load(tmp_path / "steps", "another", step.trained) is None


numbers = st.floats(min_value=0, allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(
    error=numbers,
    threshold=st.none() | numbers,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 4)),
)
def test_every_digit_and_type_comes_back(tmp_path_factory, error, threshold, dtype, shape):
    weight = torch.randn(shape[::-1]).to(dtype).T
    values = {"error": error, "relative_error": error / 3, "sensitivity_threshold": threshold, "damping": 0.1 + 0.2}
    step = LayerResult(
        "one", weight, weight, weight > 0, features=shape[1], removable=weight.numel(), seconds=1e-9, **values
    )
    folder = tmp_path_factory.mktemp("steps")
    step.save(folder)
    assert_same(LayerResult.load(folder, "one", weight), step)


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.999])
def test_a_damaged_file_counts_as_none_and_is_written_anew(tmp_path, share):
    step = taken()[0]
    step.save(tmp_path)
    file = layer_file(tmp_path, step.name)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.warns(UserWarning, match=r"layer.safetensors is damaged .*: it is computed again"):
        assert LayerResult.load(tmp_path, step.name, step.trained) is None
    step.save(tmp_path)
    assert file.read_bytes() == content


def test_an_interrupted_save_leaves_the_step_before_it(tmp_path, monkeypatch):
    step = taken()[0]
    step.save(tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lobs.base.tensor_files.json.dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(step, error=99.0).save(tmp_path)
    monkeypatch.undo()
    assert_same(LayerResult.load(tmp_path, step.name, step.trained), step)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_error_is_that_of_the_weights_as_the_network_holds_them(dtype, sequential):
    """Few weights removed: rounding to 16 bits makes the larger part of the error."""
    torch.manual_seed(0)
    inputs = torch.randn(300, 5) @ torch.randn(5, 20) + 0.1 * torch.randn(300, 20)
    dense = torch.nn.Linear(20, 6).to(dtype)
    inputs = inputs.to(dtype)
    result = lobs.prune(dense, batches=inputs.split(50), method="exact_obs", density=0.9, sequential=sequential)
    outputs = [inputs.double() @ layer.weight.double().T + layer.bias.double() for layer in (dense, result.model)]
    error = float((outputs[1] - outputs[0]).detach().square().sum(1).mean())
    assert result.layers[0].error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("column", [0, -1])
def test_what_the_layers_type_cannot_hold_is_refused_and_changes_nothing(column):
    layer = torch.nn.Linear(3, 2).half()
    before, matrix = weight_matrix(layer), torch.ones(2, 4)
    matrix[1, column] = -7e4
    with pytest.raises(ValueError, match=r"Linear.* would get weights that torch.float16 cannot hold: .*float32"):
        written(layer, (matrix, matrix != 0), True)
    assert torch.equal(weight_matrix(layer), before)
    rounded, _ = written(layer.bfloat16(), (matrix, matrix != 0), True)
    assert torch.equal(rounded, weight_matrix(layer).float())
    assert float(rounded[1, column]) == pytest.approx(-7e4, rel=1e-2)


def test_a_candidate_that_the_type_cannot_hold_is_not_taken():
    """Two units that are alike: where one of them leaves, the other's weights are twice as large."""
    torch.manual_seed(0)
    dense = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 4)
    )
    with torch.no_grad():
        dense[0].weight[4:] = dense[0].weight[:4]
        dense[0].bias[4:] = dense[0].bias[:4]
        dense[2].weight.copy_(4e4 * torch.randn(8, 8).sign())
    dense, inputs = dense.half(), (0.01 * torch.randn(256, 8)).half()
    result = lobs.prune(dense, batches=[inputs], method="lobs", density=0.5, allocation="global")
    assert all(weight.isfinite().all() for weight in result.model.parameters())
