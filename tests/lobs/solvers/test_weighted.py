"""Paths in the currency sum_i g_i E_i, against the method run by hand on the rows times sqrt(g)."""

from dataclasses import replace

import pytest
import torch

import lobs
from lobs.calibration.statistics import layer_error
from lobs.registry import METHODS
from lobs.solvers import make
from lobs.solvers.base import Solver
from lobs.solvers.recomputed import RecomputedPath
from lobs.solvers.weighted import MANY_UNITS, WeightedPath

# All that remove single weights; name -> options
SOLVERS = {name: {} for name in METHODS if name != "apoz"}
SOLVERS |= {"net_trim": {"iterations": 20, "bisections": 3}, "lobs, resolved": {"resolve": True}}
EXACT = {
    "plain": {},
    "2:4": {"pattern": "2:4"},
    "block": {"block": 2},
    "groups": {"group_size": 4},
    "auto": {"group_size": "auto"},
    "refined": {"refine": True},
    "float32": {"precision": "float32"},
}
# share of zeros, inputs that are always zero, groups, bias
LAYERS = {
    "plain": (0.0, 0, 1, True),
    "zeros": (0.2, 0, 1, True),
    "dead inputs": (0.0, 2, 1, False),
    "zeros and dead inputs": (0.2, 3, 1, True),
    "grouped": (0.2, 1, 2, True),
}


def layer(kind="plain", rows=4, features=8, seed=0):
    """Weight, inputs by group (the bias's ones included) and statistics with all that any solver reads."""
    zeros, dead, groups, bias = LAYERS[kind]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, features + bias, generator=generator, dtype=torch.float64)
    weight[:, :features][torch.rand(rows, features, generator=generator) < zeros] = 0
    blocks = torch.randn(groups, 60, features, generator=generator, dtype=torch.float64)
    blocks = blocks @ torch.randn(groups, features, features, generator=generator, dtype=torch.float64)
    blocks[:, :, :dead] = 0
    moments = [lobs.LayerStatistics.from_samples(block, bias) for block in blocks]
    inputs = torch.cat([blocks, blocks.new_ones(groups, 60, int(bias))], 2)
    single = groups == 1
    return (
        weight,
        inputs,
        replace(
            moments[0],
            second_moment=moments[0].second_moment if single else torch.stack([m.second_moment for m in moments]),
            inputs_sample=inputs[0] if single else inputs,
            loss_curvature=torch.rand(weight.shape, generator=generator, dtype=torch.float64),
        ),
    )


def units(rows=4, seed=0):
    return 0.1 + 3 * torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name):
    return make(name.partition(",")[0], **SOLVERS[name])


def weighted_error(weight, pruned, inputs, g):
    """sum_i g_i E_i from the inputs themselves."""
    changes = (pruned - weight).unflatten(0, (len(inputs), -1))
    return float((g * (inputs @ changes.mT).square().mean(1).flatten()).sum())


@pytest.mark.parametrize("kind", ["zeros", "grouped"])
@pytest.mark.parametrize("name", SOLVERS)
def test_it_is_the_method_on_scaled_rows_with_the_scale_taken_back(name, kind):
    weight, _, statistics = layer(kind)
    g, solver = units(), made(name)
    scale = g.sqrt()[:, None]
    curvature = replace(statistics, loss_curvature=statistics.loss_curvature / g[:, None])
    oracle, path = solver(weight * scale, curvature), solver(weight, statistics).weighted(g)
    assert (path.total, path.free) == (oracle.total, oracle.free)
    torch.testing.assert_close(path.layer_error(), oracle.layer_error())
    for count in range(0, path.total + 1, 5):
        expected, mask = oracle.at(count)
        found, found_mask = path.at(count)
        assert torch.equal(found_mask, mask)
        assert torch.equal(path.kept(count), oracle.kept(count))
        torch.testing.assert_close(found, expected / scale)
        assert torch.equal(found == 0, ~mask | (expected == 0))
    assert torch.equal(path.at(path.free)[0][path.at(path.free)[1]], weight[path.at(path.free)[1]])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", SOLVERS)
def test_units_of_equal_weight_leave_the_order_as_it_is(name, kind):
    weight, _, statistics = layer(kind)
    plain = made(name)(weight, statistics)
    path = plain.weighted(torch.full((4,), 4.0, dtype=torch.float64))
    counts = range(plain.total + 1) if name != "net_trim" else (plain.free, plain.total // 2, plain.total)
    assert all(torch.equal(path.kept(count), plain.kept(count)) for count in counts)
    torch.testing.assert_close(path.layer_error(), 4 * plain.layer_error())
    if plain.rank is not None and name == "exact_obs":
        assert torch.equal(path.rank, plain.rank)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_exact_obs_merges_anew_what_an_elimination_of_its_own_would_find(options, kind):
    weight, _, statistics = layer(kind)
    solver, g = make("exact_obs", **options), units()
    plain = solver(weight, statistics)
    path, generic = plain.weighted(g), Solver.weighted(solver, plain, g)
    assert isinstance(generic, WeightedPath)
    assert (path.total, path.free) == (generic.total, generic.free)
    torch.testing.assert_close(path.layer_error(), generic.layer_error(), rtol=1e-5, atol=1e-9)
    for count in range(path.total + 1):
        (found, mask), (expected, expected_mask) = path.at(count), generic.at(count)
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    leaves = plain.sensitivities.isfinite()
    torch.testing.assert_close(path.sensitivities[leaves], plain.sensitivities[leaves])
    assert torch.equal(solver(weight, statistics).weighted(torch.ones(4)).rank, plain.rank)


def test_exact_obs_eliminates_once_however_often_its_units_are_weighted(monkeypatch):
    weight, _, statistics = layer("grouped")
    path = make("exact_obs")(weight, statistics)
    monkeypatch.setattr("lobs.solvers.exact_obs.ExactOBS.path", None)
    again = path.weighted(units()).weighted(units(seed=1))
    assert torch.equal(again.rank, path.weighted(units(seed=1)).rank)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("exact_obs", "net_trim", "sparsegpt")])
def test_the_curve_of_many_units_is_read_from_their_own_without_measuring_again(name, monkeypatch):
    weight, inputs, statistics = layer("zeros", rows=MANY_UNITS, features=30)
    g, plain = units(MANY_UNITS), made(name)(weight, statistics)
    plain.layer_error()
    path = plain.weighted(g)
    with monkeypatch.context() as patch:
        patch.setattr("lobs.solvers.path.RankedPath.at", None)
        patch.setattr("lobs.solvers.weighted.WeightedPath.at", None)
        curve = path.layer_error()
    assert not curve[: path.free + 1].any() and (curve.diff() >= 0).all()
    counts = (path.free + torch.linspace(0.2, 1, 12) * (path.total - path.free)).long()
    found = torch.tensor([weighted_error(weight, path.at(int(count))[0], inputs, g) for count in counts])
    expected = found.double().cummax(0).values
    torch.testing.assert_close(curve[counts], expected, rtol=0.15, atol=0)
    assert ((curve[counts] - expected).abs() / expected).median() < 0.05


@pytest.mark.parametrize("kind", ["plain", "grouped"])
@pytest.mark.parametrize("name", [*SOLVERS, "exact_obs, groups"])
def test_the_curve_is_the_weighted_sum_of_the_units_errors(name, kind):
    weight, inputs, statistics = layer(kind)
    solver = make("exact_obs", group_size=4) if name == "exact_obs, groups" else made(name)
    g, path = units(), solver(weight, statistics).weighted(units())
    counts, errors = path.curve_points()
    parts = [statistics.group(index) for index in range(statistics.groups)]
    rows = weight.chunk(len(parts))
    damping = [made("exact_obs")(*pair).damping for pair in zip(rows, parts, strict=True)]
    damping = torch.tensor(damping, dtype=torch.float64).repeat_interleave(len(rows[0]))
    highest = 0.0
    for count, error in zip(counts.tolist(), errors.tolist(), strict=True):
        pruned = path.at(count)[0]
        exact = weighted_error(weight, pruned, inputs, g)
        if name == "exact_obs":  # its own curve holds the damping
            damped = float(((g * damping)[:, None] * (pruned - weight).square()).sum())
            assert error == pytest.approx(exact + damped, rel=1e-6, abs=1e-9)
            continue
        highest = max(highest, exact)
        assert error == pytest.approx(highest, rel=1e-6, abs=1e-9)
        assert path.measured_error(pruned) == pytest.approx(layer_error(pruned - weight, statistics.second_moment))


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "obd"])
def test_weights_that_a_method_leaves_alone_stay_to_the_last_bit(method):
    weight, _, statistics = layer("zeros")
    weight = weight.float()
    path = make(method)(weight, statistics).weighted(units())
    for count in range(path.total + 1):
        pruned, mask = path.at(count)
        assert pruned.dtype == weight.dtype
        assert torch.equal(pruned, weight.masked_fill(~mask, 0.0))


@pytest.mark.parametrize("name", ["magnitude", "exact_obs", "lobs"])
def test_a_tolerance_is_in_the_currency_of_the_curve(name):
    weight, _, statistics = layer()
    path = made(name)(weight, statistics).weighted(units())
    for tolerance in (0.5, 2.0, 5.0):
        count = path.within(tolerance)
        assert path.layer_error(count) <= tolerance**2 * (1 + 1e-9)
        assert count == path.total or path.layer_error(count + 1) > tolerance**2


@pytest.mark.parametrize("method", ["magnitude", "exact_obs"])
def test_a_unit_that_counts_for_nothing_leaves_first(method):
    weight, _, statistics = layer()
    path = make(method)(weight, statistics).weighted(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    mask = path.kept(8)
    assert not mask[1].any() and mask[[0, 2, 3]].all()
    assert path.at(8)[0].isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_weights_count(name):
    weight, _, statistics = layer("zeros")
    plain = made(name)(weight, statistics)
    twice, once = plain.weighted(units(seed=1)).weighted(units()), plain.weighted(units())
    torch.testing.assert_close(twice.layer_error(), once.layer_error())
    for count in (plain.free, plain.total // 2, plain.total):
        assert torch.equal(twice.kept(count), once.kept(count))
        torch.testing.assert_close(twice.at(count)[0], once.at(count)[0])


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(3), torch.ones(4, 1), torch.tensor([1.0, -1, 1, 1]), torch.tensor([1.0, torch.nan, 1, 1])],
    ids=["too few", "a matrix", "negative", "NaN"],
)
def test_weights_that_make_no_sense_are_refused(wrong):
    weight, _, statistics = layer()
    for method in ("magnitude", "exact_obs"):
        path = make(method)(weight, statistics)
        for g in (wrong, torch.tensor([1.0, torch.inf, 1, 1])):
            with pytest.raises(ValueError, match="unit weights must be 4 finite numbers >= 0; got"):
                path.weighted(g)


def test_a_part_of_a_path_has_no_method_to_be_asked():
    weight, _, statistics = layer()
    with pytest.raises(ValueError, match="this RankedPath was made by no solver"):
        make("magnitude").path(weight, statistics).weighted(units())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_forgotten_path_is_weighted_when_it_is_made_again(name):
    weight, _, statistics = layer("zeros")
    solver, g = made(name), units()
    kept = solver(weight, statistics)
    path, expected = RecomputedPath(kept, lambda: solver(weight, statistics)).weighted(g), kept.weighted(g)
    assert isinstance(path, RecomputedPath)
    assert path.statistics.second_moment.is_meta
    assert torch.equal(path.layer_error(), expected.layer_error())
    for count in (kept.free, kept.total // 2, kept.total):
        assert all(torch.equal(one, other) for one, other in zip(path.at(count), expected.at(count), strict=True))


def test_what_was_approximated_is_still_said():
    weight, _, statistics = layer()
    solver = make("exact_obs", group_size=4)
    path = solver(weight, statistics)
    note = "eliminated in 2 groups of 4 inputs"
    forgotten = RecomputedPath(path, lambda: solver(weight, statistics))
    assert {each.note for each in (path, path.weighted(units()), forgotten, forgotten.weighted(units()))} == {note}


def test_targets_of_a_sequence_are_scaled_with_the_units():
    _, inputs, statistics = layer()
    targets = torch.randn(60, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scale = units().sqrt()
    paired = replace(statistics, target_moment=targets.T @ inputs[0] / 60, target_power=1.0, target_sample=targets)
    scaled = paired.with_scaled_units(scale)
    torch.testing.assert_close(scaled.target_moment, (targets * scale).T @ inputs[0] / 60)
    torch.testing.assert_close(scaled.target_sample, targets * scale)
    torch.testing.assert_close(scaled.loss_curvature, statistics.loss_curvature / scale.square()[:, None])
    assert scaled.target_power is None
    assert scaled.second_moment is statistics.second_moment
    bare = replace(statistics, loss_curvature=None).with_scaled_units(scale)
    assert (bare.target_moment, bare.target_sample, bare.loss_curvature) == (None, None, None)


@pytest.mark.parametrize("method", ["magnitude", "exact_obs"])
def test_units_that_nothing_depends_on_may_be_all_of_a_layer(method):
    weight, _, statistics = layer()
    plain = make(method)(weight, statistics)
    nothing = plain.weighted(torch.zeros(len(weight)))
    assert float(nothing.layer_error(nothing.total)) < 1e-10 * float(plain.layer_error(plain.total))
    half = plain.total // 2
    assert torch.equal(nothing.kept(half), plain.weighted(torch.ones(len(weight))).kept(half))


@pytest.mark.parametrize("method", ["exact_obs", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("unit", [4.0**-300, 2.0**-54, 2.0**60, 4.0**300])
def test_another_unit_of_the_weights_is_one_of_the_curve_alone(method, unit):
    weight, _, statistics = layer("plain")
    g = units()
    path = make(method)(weight, statistics)
    one, other = path.weighted(g), path.weighted(unit * g)
    assert torch.equal(unit * one.layer_error(), other.layer_error())
    for count in (0, 7, one.total // 2):
        assert all(torch.equal(*pair) for pair in zip(one.at(count), other.at(count), strict=True))


def test_half_precision_loses_no_row_that_counts_little():
    torch.manual_seed(0)
    weight, samples = (torch.randn(80, 48) * 1e-4).half(), torch.randn(200, 48, dtype=torch.float64)
    path = make("magnitude")(weight, lobs.LayerStatistics.from_samples(samples))
    g = torch.cat([torch.ones(40), torch.zeros(40)]).double()
    weighted = path.weighted(g)
    assert weighted.free == path.free == int((weight == 0).sum())
    assert weighted.at(weighted.total // 2)[0].dtype == torch.half
