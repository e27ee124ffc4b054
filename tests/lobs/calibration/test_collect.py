"""Statistics of whole networks against float64 on the whole data at once, and under any ceiling on the memory."""

import gc
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.moments import assert_moments_agree, dense_moment
from lobs.base.memory import available_bytes, ceiling
from lobs.calibration.spilling import moment_bytes
from lobs.calibration.statistics import TENSORS, Statistics


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


@pytest.mark.parametrize("bias", [True, False])
def test_wide_layers_are_multiplied_in_blocks_of_rows(monkeypatch, bias):
    monkeypatch.setattr("lobs.calibration.products.PRODUCT_ROWS", 4)
    torch.manual_seed(0)
    inputs, model = torch.randn(3, 9, 20, 40).double(), nn.Conv2d(9, 2, 1, bias=bias).double()
    statistics = lobs.collect_statistics(nn.Sequential(model), inputs.split(2))["0"]
    assert (statistics.samples, statistics.features) == (2400, 9)
    assert_moments_agree(statistics.second_moment, dense_moment(inputs.movedim(1, -1).reshape(-1, 9), bias))
    assert torch.equal(statistics.second_moment, statistics.second_moment.T)


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
    with pytest.raises(TypeError, match="nothing in a batch of dict of x=int says how many inputs it holds"):
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


class Branched(nn.Module):
    """Layers are not called in the order of their definition, and one is never called."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(18, 3)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.spare = nn.Linear(3, 3)
        self.side = nn.Conv2d(4, 2, 1, stride=2, groups=2)

    def forward(self, inputs):
        return self.last(self.side(torch.relu(self.first(inputs))).flatten(1))


class Batches:
    def __init__(self, parts):
        self.parts, self.passes = list(parts), 0

    def __iter__(self):
        self.passes += 1
        return iter(self.parts)


def make_network():
    torch.manual_seed(0)
    return Branched().eval(), Batches(torch.randn(12, 2, 6, 6).split(5))


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, layer in expected.items():
        for field in TENSORS:
            value = getattr(layer, field)
            assert value is None or torch.equal(getattr(found[name], field), value), (name, field)
        assert (found[name].samples, found[name].inputs, found[name].last) == (layer.samples, layer.inputs, layer.last)


def test_groups_of_layers_give_the_same_statistics():
    model, batches = make_network()
    whole = lobs.collect_statistics(model, batches, keep_samples=5)
    assert batches.passes == 1
    tiny = lobs.collect_statistics(model, batches, keep_samples=5, memory=1)
    assert list(tiny) == ["first", "side", "last"]
    assert batches.passes == 1 + 3
    assert_same(tiny, whole)
    sizes = [moment_bytes(getattr(model, name)) for name in ("last", "first")]
    assert sizes == [8 * 19**2, 8 * 19**2]
    batches.passes = 0
    assert_same(lobs.collect_statistics(model, batches, keep_samples=5, memory=sum(sizes)), whole)
    assert batches.passes == 2


def test_finished_layers_lie_on_the_disk_as_long_as_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, batches = make_network()
    statistics = lobs.collect_statistics(model, batches, memory=1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert statistics["side"].groups == 2
    statistics.save(tmp_path / "all.safetensors")
    assert_same(Statistics.load(tmp_path / "all.safetensors"), statistics)
    assert_same(Statistics.load(tmp_path / "all.safetensors", lazy=True), statistics)
    del statistics
    gc.collect()
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["all.safetensors"]


def test_the_ceiling_leaves_the_file_as_it_is(tmp_path):
    model, batches = make_network()
    for name, memory in (("whole", None), ("groups", 1)):
        lobs.collect_statistics(model, batches, keep_samples=3, memory=memory).save(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "groups").read_bytes()


class Interrupted(Exception):
    pass


def test_an_interrupted_collection_goes_on_at_the_next_group(tmp_path):
    model, batches = make_network()
    whole = lobs.collect_statistics(model, batches)

    def stop_in_the_third_pass(parts):
        if batches.passes == 3:
            raise Interrupted
        return parts

    batches.passes = 0
    with pytest.raises(Interrupted):
        lobs.collect_statistics(model, batches, memory=1, folder=tmp_path, progress=stop_in_the_third_pass)
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(finished) == 2
    batches.passes = 0
    assert_same(lobs.collect_statistics(model, batches, memory=1, folder=tmp_path), whole)
    assert batches.passes == 2  # one to see that they are the same
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}.items()


def test_an_iterator_is_refused_where_several_passes_are_needed():
    model, batches = make_network()
    with pytest.raises(ValueError, match=r"4 layers take .* GiB, the ceiling is .* list_iterator given is used up"):
        lobs.collect_statistics(model, iter(batches.parts), memory=1)
    with pytest.raises(ValueError, match=r"memory is a ceiling in bytes, above 0, .* got 0"):
        lobs.collect_statistics(model, batches, memory=0)
    assert 0 < ceiling(None) < available_bytes()


def test_a_folder_of_another_call_is_refused_also_where_batches_can_be_read_only_once(tmp_path):
    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

    batches = list(torch.randn(9, 4).split(3))
    expected = lobs.collect_statistics(network(0), iter(batches), folder=tmp_path)
    found = lobs.collect_statistics(network(0), iter(batches), folder=tmp_path)
    assert torch.equal(found["2"].second_moment, expected["2"].second_moment)
    with pytest.raises(ValueError, match="holds parts of another call: network, outputs differ"):
        lobs.collect_statistics(network(1), iter(batches), folder=tmp_path)
    with pytest.raises(ValueError, match="holds parts of another call: batches, outputs differ"):
        lobs.collect_statistics(network(0), iter([batch + 1 for batch in batches]), folder=tmp_path)
    other = network(0)
    other[1] = nn.Tanh()  # the same state, and other inputs of the layers behind it
    with pytest.raises(ValueError, match="holds parts of another call: network, outputs differ"):
        lobs.collect_statistics(other, iter(batches), folder=tmp_path)


def test_a_part_of_another_call_and_parts_that_changed_places_are_collected_again(tmp_path):
    model, batches = three_layers(), [torch.randn(9, 6)]
    expected = lobs.collect_statistics(model, batches)
    lobs.collect_statistics(model, [5 * batches[0]], folder=tmp_path / "other")
    lobs.collect_statistics(model, batches, folder=tmp_path / "own")
    for spoil in (swap, copy_over):
        spoil(tmp_path)
        with pytest.warns(UserWarning, match="holds what was made from another layer or call"):
            found = lobs.collect_statistics(model, batches, folder=tmp_path / "own")
        assert all(torch.equal(found[name].second_moment, layer.second_moment) for name, layer in expected.items())


def three_layers():
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


def swap(folder):
    one, two = sorted((folder / "own").glob("*.safetensors"))[:2]
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)


def copy_over(folder):
    for file in (folder / "other").glob("*.safetensors"):
        shutil.copy(file, folder / "own" / file.name)


def test_a_file_that_is_replaced_after_it_was_collected_is_refused(tmp_path):
    model, batches = three_layers(), [torch.randn(9, 6)]
    found = lobs.collect_statistics(model, batches, folder=tmp_path / "own")
    lobs.collect_statistics(model, [5 * batches[0]], folder=tmp_path / "other")
    assert found["0"].samples == 9
    copy_over(tmp_path)
    with pytest.raises(ValueError, match="is another file than it was: collect the statistics again"):
        found["0"]
