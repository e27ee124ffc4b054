"""A path of which only the curve is kept answers as the path did, and keeps no matrix."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from lobs.registry import METHODS
from lobs.solvers import make
from lobs.solvers.hessian import FLOAT64_FEATURES
from lobs.solvers.recomputed import ARRAYS, RecomputedPath, path_bytes, whole

# All but whole units, which are always kept; name -> options
SOLVERS = {name: {} for name in METHODS if name != "apoz"}
SOLVERS |= {"net_trim": {"iterations": 5, "bisections": 2}, "exact_obs, refined": {"refine": True}}


def layer(groups=1, features=20, rows=24, seed=0):
    """A weight that is zero here and there, and all that any solver reads; more weights than a curve has knots."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, features + 1, generator=generator)
    weight[:, :features][torch.rand(rows, features, generator=generator) < 0.1] = 0
    blocks = torch.randn(groups, 60, features, generator=generator)
    inputs = torch.cat([blocks, torch.ones(groups, 60, 1)], 2)
    moments = torch.stack([lobs.LayerStatistics.from_samples(block, True).second_moment for block in blocks])
    return weight, lobs.LayerStatistics(
        moments if groups > 1 else moments[0],
        samples=60,
        inputs=60,
        bias=True,
        zero_fraction=torch.rand(rows, generator=generator).double(),
        loss_curvature=torch.rand(rows, features + 1, generator=generator).double(),
        inputs_sample=inputs if groups > 1 else inputs[0],
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SOLVERS)
def test_it_answers_as_the_path_did(name, groups):
    weight, statistics = layer(groups, features=20 // groups)
    solver, made = make(name.partition(",")[0], **SOLVERS[name]), []
    kept = solver(weight, statistics)

    def again():
        made.append(solver(weight, statistics))
        return made[-1]

    path = RecomputedPath(kept, again)
    for key in ("total", "removable", "damping", "free", "removes_units"):
        assert getattr(path, key) == getattr(kept, key), key
    assert (path.statistics.features, path.statistics.groups) == (statistics.features, groups)
    assert path.solved_counts() == kept.solved_counts()
    assert torch.equal(path.layer_error(), kept.layer_error())
    assert all(torch.equal(one, other) for one, other in zip(path.curve_points(), kept.curve_points(), strict=True))
    assert path.count_for(0.3) == kept.count_for(0.3)
    assert not made, "the curve alone was asked for"
    for count in (0, path.total // 2):
        assert all(torch.equal(one, other) for one, other in zip(path.at(count), kept.at(count), strict=True))
        assert path.layer_error(count) == kept.layer_error(count)
    assert torch.equal(path.kept(path.total // 3), kept.kept(path.total // 3))
    assert len(made) == 3
    assert whole(path) is made[-1]
    assert whole(kept) is kept


def test_no_matrix_is_kept():
    alive, kept = [], []
    for name, options in SOLVERS.items():
        weight, statistics = layer()
        path = make(name.partition(",")[0], **options)(weight, statistics)
        alive += [(name, weakref.ref(part)) for part in (path, statistics.second_moment, statistics.inputs_sample)]
        kept.append(RecomputedPath(path, lambda: pytest.fail("the curve was kept")))
        del path, statistics
    gc.collect()
    assert [name for name, reference in alive if reference() is not None] == []
    assert all(path.layer_error(path.total) > 0 for path in kept)


def test_wrong_counts_are_refused_before_anything_is_computed():
    weight, statistics = layer()
    path = RecomputedPath(make("magnitude")(weight, statistics), lambda: pytest.fail("computed"))
    for wrong in (-1, path.total + 1):
        for answer in (path.at, path.kept, path.layer_error):
            with pytest.raises(ValueError, match=f"count must be between 0 and 480, got {wrong}"):
                answer(wrong)


@pytest.mark.parametrize(("name", "matrices"), [("magnitude", 1), ("sparsegpt", 3), ("lobs", 3), ("exact_obs", 3)])
def test_bytes_count_the_matrices_and_the_arrays_of_a_path(name, matrices):
    weight, statistics = layer(groups=2, features=10)
    path = make(name)(weight, statistics)
    assert path_bytes(path) >= matrices * 8 * 2 * 11**2 + ARRAYS * 4 * weight.numel()


def test_wide_layers_are_factorised_in_half_the_bytes():
    weight, statistics = layer()
    path = make("lobs")(weight, statistics)
    for features, bytes_each in ((FLOAT64_FEATURES, 8 + 16), (FLOAT64_FEATURES + 1, 8 + 8)):
        path.statistics = replace(statistics, second_moment=torch.empty(features, features, device="meta"))
        assert path_bytes(path) - ARRAYS * 4 * weight.numel() == features**2 * bytes_each


def test_patterns_on_a_network_with_zeros_do_not_depend_on_the_ceiling():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)).eval()
    batches = list(torch.randn(64, 16).split(16))
    first = lobs.prune(model, batches=batches, method="magnitude", density=0.2).model
    solver = make("magnitude", pattern="2:4")
    found = [
        lobs.prune(first, batches=batches, method=solver, density=0.6, allocation="relative", memory=memory)
        for memory in (None, 1)
    ]
    assert all(torch.equal(found[0].masks[name], mask) for name, mask in found[1].masks.items())


def test_what_needs_the_matrix_is_computed_with_it():
    statistics = lobs.LayerStatistics.from_samples(torch.randn(50, 12, generator=torch.Generator().manual_seed(0)))
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    for method in ("magnitude", "lobs", "exact_obs"):
        path = make(method)(weight, statistics)
        forgotten = RecomputedPath(path, lambda method=method: make(method)(weight, statistics))
        assert forgotten.within(1.5) == path.within(1.5)
        assert forgotten.sensitivity_threshold(20) == path.sensitivity_threshold(20)
        assert forgotten.measured_error(0 * weight) == path.measured_error(0 * weight)


@pytest.mark.parametrize("method", ["exact_obs", "lobs", "net_trim", "magnitude"])
def test_the_bytes_counted_are_no_fewer_than_those_held(method):
    samples = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    statistics = replace(lobs.LayerStatistics.from_samples(samples), inputs_sample=samples)
    path = make(method)(torch.randn(30, 40), statistics)
    arrays = [value for value in vars(path).values() if isinstance(value, torch.Tensor)]
    assert path_bytes(path) >= sum(array.untyped_storage().nbytes() for array in arrays)


def test_units_that_leave_have_the_same_curve():
    torch.manual_seed(0)
    weight = torch.randn(60, 64) * (torch.rand(60, 64) < 0.5)
    samples = torch.randn(300, 64, dtype=torch.float64)
    statistics = lobs.LayerStatistics(
        samples.mT @ samples / 300, 300, 300, False, zero_fraction=torch.rand(60).double()
    )
    path = make("apoz")(weight, statistics)
    again = RecomputedPath(path, lambda: path)
    assert again.removes_units and torch.equal(again.layer_error(), path.layer_error())
