"""A grouped convolution is pruned as its block-diagonal matrix would be."""

import pytest
import torch
from torch import nn

import lobs
from lobs.allocation.loss_curves import relative
from lobs.layers.matrix import set_weight_matrix, weight_matrix
from lobs.registry import METHODS
from lobs.solvers import make
from lobs.solvers.exact_obs import ExactOBS
from lobs.solvers.grouped import GroupedPath


def blocks(groups=3, rows=2, features=5, seed=0):
    """A grouped layer without a bias, and the same layer as one block-diagonal matrix, inputs of like size."""
    torch.manual_seed(seed)
    samples = torch.randn(groups, 80, features, dtype=torch.float64) @ torch.randn(features, features).double()
    moments = samples.mT @ samples / 80
    moments /= moments.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # so that damping is the same for all
    weight = torch.randn(groups * rows, features, dtype=torch.float64)
    grouped = lobs.LayerStatistics(moments, 80, 80, False)
    whole = lobs.LayerStatistics(torch.block_diag(*moments), 80, 80, False)
    inside = torch.block_diag(*torch.ones(groups, rows, features)).bool()
    return weight, grouped, inside, whole


@pytest.mark.parametrize(
    ("name", "options"),
    [("exact_obs", {}), ("lobs", {}), ("lobs", {"resolve": True}), ("magnitude", {}), ("exact_obs", {"refine": True})],
)
def test_every_count_is_what_the_block_diagonal_layer_gives(name, options):
    weight, grouped, inside, whole = blocks()
    wide = torch.zeros(inside.shape, dtype=torch.float64)
    wide[inside] = weight.flatten()
    expected = make(name, **options)(wide, whole)
    path = make(name, **options)(weight, grouped)
    outside = int((~inside).sum())  # zeros of the wide matrix cost nothing and leave first
    for count in range(path.total + 1):
        solved, mask = path.at(count)
        reference, kept = expected.at(count + outside)
        assert torch.equal(mask, kept[inside].reshape(mask.shape))
        torch.testing.assert_close(solved, reference[inside].reshape(solved.shape))
        assert torch.equal(path.kept(count), mask)
        if path.rank is not None and "refine" not in options:
            assert torch.equal(path.rank >= count, mask)
    torch.testing.assert_close(path.layer_error(), expected.layer_error()[outside:])


def test_exact_obs_of_groups_loses_no_more_than_any_equal_share():
    weight, grouped, *_ = blocks(groups=4, seed=3)
    path = make("exact_obs")(weight, grouped)
    parts = [make("exact_obs")(rows, grouped.group(i)) for i, rows in enumerate(weight.chunk(4))]
    for each in range(parts[0].total + 1):
        assert path.layer_error(4 * each) <= sum(part.layer_error(each) for part in parts) + 1e-12


def uneven(groups, rows, features, bias, zeros=0.2, seed=1):
    """Groups of inputs of very different sizes, and some weights that are zero."""
    torch.manual_seed(seed)
    samples = torch.randn(groups, 90, features, dtype=torch.float64) @ torch.randn(groups, features, features).double()
    samples *= torch.logspace(-2, 1, groups)[:, None, None]
    if bias:
        samples[..., -1] = 1.0
    weight = torch.randn(groups * rows, features) * (torch.rand(groups * rows, features) > zeros)
    return weight, lobs.LayerStatistics(samples.mT @ samples / 90, 90, 90, bias)


class OneByOne(ExactOBS):
    """Every group by a call of its own, however small."""

    def divides(self, weight, statistics):
        return True


@pytest.mark.parametrize(
    ("groups", "rows", "features", "bias", "dead"),
    [(12, 1, 9, False, 0), (7, 1, 10, True, 0), (5, 4, 8, True, 0), (12, 1, 9, False, 9), (6, 3, 8, False, 3)],
)
def test_small_groups_that_are_eliminated_together_are_each_as_if_alone(groups, rows, features, bias, dead):
    weight, statistics = uneven(groups, rows, features, bias)
    statistics.second_moment[2, :dead] = statistics.second_moment[2, :, :dead] = 0.0
    solver = make("exact_obs")
    path, expected = solver(weight, statistics), OneByOne()(weight, statistics)
    assert not isinstance(path, GroupedPath)
    assert isinstance(expected, GroupedPath)
    again = solver.restored(weight, statistics, path.state)
    assert path.damping == pytest.approx(expected.damping)
    assert (path.total, path.free) == (expected.total, expected.free)
    torch.testing.assert_close(path.sensitivities, expected.sensitivities)
    torch.testing.assert_close(path.layer_error(), expected.layer_error())
    g = torch.rand(len(weight), dtype=torch.float64) + 0.1
    for found, reference in ((path, expected), (again, expected), (path.weighted(g), expected.weighted(g))):
        for count in (path.free, path.free + 1, path.total // 2, int(0.9 * path.total), path.total):
            solved, mask = found.at(count)
            assert torch.equal(mask, reference.at(count)[1])
            torch.testing.assert_close(solved, reference.at(count)[0])
        torch.testing.assert_close(found.layer_error(), reference.layer_error())


@pytest.mark.parametrize("odd", ["pattern", "large"])
def test_other_groups_are_eliminated_one_by_one(odd):
    weight, statistics = uneven(3, 2, 80 if odd == "large" else 8, False)
    path = make("exact_obs", pattern="2:4" if odd == "pattern" else None)(weight, statistics)
    assert isinstance(path, GroupedPath)
    assert all(torch.isfinite(path.layer_error()))


def test_a_patterns_last_weights_stay_in_every_group():
    torch.manual_seed(0)
    weight, moments = torch.randn(6, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64).repeat(3, 1, 1)
    path = make("lobs", pattern="2:4")(weight, lobs.LayerStatistics(moments, 9, 9, False))
    assert (path.total, path.removable) == (24, 48)
    assert torch.equal(path.rank.flatten().sort().values, torch.arange(48, dtype=torch.int32))
    assert torch.equal(path.rank >= path.total, path.at(path.total)[1])


@pytest.mark.parametrize("options", [{}, {"block_size": 7}, {"pattern": "2:4"}])
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_sparsegpts_groups_are_swept_as_if_alone(options, zeros):
    torch.manual_seed(0)
    samples = torch.randn(4, 90, 20, dtype=torch.float64) @ torch.randn(4, 20, 20, dtype=torch.float64)
    samples *= torch.tensor([1.0, 3.0, 0.1, 1.0])[:, None, None] * (torch.rand(4, 1, 20) > 0.2)
    weight = torch.randn(12, 20, dtype=torch.float64) * (torch.rand(12, 20) > zeros)
    grouped = lobs.LayerStatistics(samples.mT @ samples / 90, 90, 90, False)
    path = make("sparsegpt", **options)(weight, grouped)
    parts = [make("sparsegpt", **options)(rows, grouped.group(i)) for i, rows in enumerate(weight.chunk(4))]
    merged = GroupedPath(weight, grouped, parts)  # every group's curve, measured at every count
    for count in (path.free + 1, path.total // 2 + 7, int(0.7 * path.total), int(0.9 * path.total), path.total):
        solved, mask = path.at(count)
        for part, own, kept in zip(parts, solved.chunk(4), mask.chunk(4), strict=True):
            expected, same = part.at(int((~kept).sum()))
            assert torch.equal(kept, same)
            torch.testing.assert_close(own, expected)
        least = merged.measured_error(merged.at(count)[0])
        assert path.measured_error(solved) <= 1.1 * least + 1e-9


def test_net_trims_groups_are_one_program_with_one_epsilon():
    """Two groups whose weights stand in one block-diagonal matrix: the same program, the same masks."""
    torch.manual_seed(0)
    samples = torch.randn(2, 90, 14, dtype=torch.float64)
    moments = samples.mT @ samples / 90
    weight = torch.randn(4, 14, dtype=torch.float64)
    grouped = lobs.LayerStatistics(moments, 90, 90, False, inputs_sample=samples)
    path = make("net_trim", iterations=400, tolerance=1e-6)(weight, grouped)
    assert (path.solved_counts() or [0, path.total])[0] == 0
    for count in (10, 28, 45):
        found, mask = path.at(count)
        assert int((~mask).sum()) == count
        assert (found[~mask] == 0).all()
        alone = [make("net_trim")(rows, grouped.group(i)) for i, rows in enumerate(weight.chunk(2))]
        own = [int((~part).sum()) for part in mask.chunk(2)]
        best = sum(part.measured_error(part.at(each)[0]) for part, each in zip(alone, own, strict=True))
        assert path.measured_error(found) < 1.3 * best + 1e-9


def network(padding_mode="reflect"):
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode=padding_mode),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, dilation=2, groups=4, bias=False),
            nn.ReLU(),
            nn.Conv2d(12, 4, 1, stride=2),
            nn.Flatten(),
        )
        .double()
        .eval()
    )


@pytest.mark.parametrize("method", [name for name in METHODS if name != "apoz"])
def test_networks_with_groups_are_pruned_by_every_method(method):
    # BackPACK, which obd needs, knows zeros around an image only
    dense = network("zeros" if method == "obd" else "reflect")
    images = torch.randn(6, 3, 12, 12, dtype=torch.float64)
    wanted = dense(images).detach()
    targets = [(part, torch.randn(len(part), *wanted.shape[1:], dtype=torch.float64)) for part in images.split(2)]
    loss = "mse" if method == "obd" else None
    statistics = lobs.collect_statistics(dense, targets, loss=loss, keep_samples=40)
    result = lobs.prune(dense, statistics, method, density=0.5, allocation="global")
    assert result.density == pytest.approx(0.5, abs=2e-3)
    for record in result.layers:
        module, original = result.model.get_submodule(record.name), dense.get_submodule(record.name)
        assert torch.equal(result.masks[record.name], result.masks[record.name] & (module.weight != 0))
        assert int((module.weight != 0).sum()) == record.kept
        seen = []
        handle = original.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        dense(images)
        handle.remove()
        difference = (module(seen[0]) - original(seen[0])).detach().square().sum()
        assert record.error == pytest.approx(float(difference) / statistics[record.name].samples, rel=1e-6)
    bound = lobs.error_bound(dense, result.model, statistics).total
    assert bound >= float((result.model(images) - wanted).detach().square().sum() / len(images)) ** 0.5


def test_groups_in_sequence_repair_what_the_layers_before_broke():
    dense, images = network(), torch.randn(16, 3, 12, 12, dtype=torch.float64)
    options = {"method": "exact_obs", "density": 0.4, "batches": images.split(4)}
    apart, inside = (lobs.prune(dense, sequential=sequential, **options) for sequential in (False, True))
    distances = [float((result.model(images) - dense(images)).detach().square().sum()) for result in (apart, inside)]
    assert distances[1] < distances[0]


def test_a_depthwise_layer_at_its_whole_count_keeps_its_bias_alone():
    dense = network()
    statistics = lobs.collect_statistics(dense, [torch.randn(6, 3, 12, 12, dtype=torch.float64)], ["2"])["2"]
    solved, mask = make("exact_obs")(weight_matrix(dense[2]), statistics).at(72)
    assert torch.equal(mask, torch.eye(10, dtype=torch.bool)[-1].expand(8, 10))
    set_weight_matrix(dense[2], solved)
    assert not dense[2].weight.any()


@pytest.mark.parametrize("density", [0.6, 0.3])
def test_apoz_follows_units_into_the_groups_that_read_them(density):
    dense, images = network(), torch.randn(6, 3, 12, 12, dtype=torch.float64)
    result = lobs.prune(dense, lobs.collect_statistics(dense, [images]), "apoz", density=density)
    assert density - 0.15 < result.density <= density
    for module, reader in ((0, 2), (2, 4)):  # a unit that is left has its bias
        alive, groups = result.model[module].bias != 0, result.model[reader].groups
        assert 0 < int(alive.sum()) < 8
        seen = result.masks[str(reader)].flatten(2).any(2)
        channels = alive.unflatten(0, (groups, -1)).repeat_interleave(len(seen) // groups, 0)
        assert not seen[~channels].any()
        rows = seen.any(1)
        assert torch.equal(seen[rows], channels[rows])
        assert not result.model[module].weight[~alive].any()


@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_groups_that_never_see_anything_cost_nothing(damping):
    weight, statistics = uneven(12, 1, 9, False)
    statistics.second_moment[2:] = 0.0
    path = make("exact_obs", damping=damping)(weight, statistics)
    assert not isinstance(path, GroupedPath)
    costless, curve = weight[2:].numel() + int((weight[:2] == 0).sum()), path.layer_error()
    assert not curve[: costless + 1].any() and curve[costless + 1] > 0
    assert torch.equal(path.kept(costless)[:2], weight[:2] != 0)
    statistics.second_moment[:] = 0.0
    silent_path = make("exact_obs", damping=damping)(weight, statistics)
    assert not silent_path.layer_error().any()
    assert not relative({"0": silent_path})["0"][1].any()
    assert torch.equal(silent_path.at(20)[0], weight * silent_path.at(20)[1])


def test_moments_that_are_no_numbers_are_refused_in_groups_too():
    weight, statistics = uneven(12, 1, 9, False)
    for value in (float("nan"), -1.0):
        statistics.second_moment[1, 2, 2] = value
        with pytest.raises(ValueError, match="diagonal that is negative or not finite"):
            make("exact_obs")(weight, statistics)
