"""A ceiling on the memory changes nothing but what is held at once."""

import gc

import pytest
import torch
from torch import nn

import lobs
from lobs.base.execution import Execution
from lobs.base.memory import available_bytes, ceiling
from lobs.calibration.spilling import moment_bytes
from lobs.calibration.statistics import TENSORS, Statistics
from lobs.schedule.paths import PathMaker
from lobs.solvers import make
from lobs.solvers.recomputed import RecomputedPath


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


@pytest.mark.parametrize("method", ["lobs", "exact_obs", "sparsegpt", "apoz"])
@pytest.mark.parametrize("allocation", ["uniform", "relative", "fisher", "measured"])
def test_pruning_under_a_tiny_ceiling_is_the_same(method, allocation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3))
    batches = torch.randn(40, 2, 6, 6).split(8)
    statistics = lobs.collect_statistics(model, batches)
    options = {"method": method, "density": 0.4, "allocation": allocation, "batches": batches}
    expected = lobs.prune(model, statistics, **options)
    found = lobs.prune(model, lobs.collect_statistics(model, batches, memory=1), memory=1, **options)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.error, one.sensitivity_threshold, one.kept) == (
            other.error,
            other.sensitivity_threshold,
            other.kept,
        )


def test_only_paths_that_fit_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 50), nn.Linear(50, 4))
    statistics = lobs.collect_statistics(model, [torch.randn(90, 6)])
    paths = PathMaker(model, statistics, make("exact_obs"), Execution(20_000)).paths(list(statistics))
    assert [isinstance(path, RecomputedPath) for path in paths.values()] == [False, False, True]
    path, whole = paths["2"], make("exact_obs")(lobs.layers.matrix.weight_matrix(model[2]), statistics["2"])
    assert path.statistics.second_moment.is_meta
    assert torch.equal(path.layer_error(), whole.layer_error())
    assert all(torch.equal(one, other) for one, other in zip(path.at(77), whole.at(77), strict=True))
    assert torch.equal(path.kept(77), whole.kept(77))
    with pytest.raises(ValueError, match="between 0 and 200, got 201"):
        path.at(201)
