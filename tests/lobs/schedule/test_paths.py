"""The layers' paths: under a ceiling on the memory, from files, and for layers that do not fit."""

import pytest
import torch
from torch import nn

import lobs
from lobs.base.execution import Execution
from lobs.schedule.paths import PathMaker
from lobs.solvers import make
from lobs.solvers.recomputed import RecomputedPath


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
