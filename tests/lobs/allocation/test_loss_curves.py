"""The candidate losses: each is the formula in its docstring."""

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import Normalised, X
from lobs.allocation.allocate import allocate
from lobs.allocation.loss_curves import fisher, fisher_units, loss_curves, relative, resolved, theorem
from lobs.calibration.output_fisher import Sensitivity, output_sensitivity
from lobs.solvers import make


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5))
    statistics = lobs.collect_statistics(model, [torch.randn(80, 1, 6, 6)])
    return model, statistics, lobs.layer_paths(model, statistics, "magnitude")


def test_relative_ends_at_one(pruned):
    for name, (counts, losses) in relative(pruned[2]).items():
        path = pruned[2][name]
        assert counts[-1] == path.total
        assert losses[0] == 0 and losses[-1] == 1
        torch.testing.assert_close(losses * path.layer_error(path.total), path.layer_error()[counts])


def test_the_scale_of_a_layer_does_not_matter_to_relative():
    """Twice the inputs, a fourth of the weights' squares: the same network, so the same split."""
    torch.manual_seed(0)
    samples = torch.randn(50, 6, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64)
    plain = make("exact_obs")(weight, lobs.LayerStatistics.from_samples(samples))
    scaled = make("exact_obs")(weight, lobs.LayerStatistics.from_samples(1000 * samples))
    counts = allocate({"plain": plain, "scaled": scaled}, 0.5, "relative")
    assert abs(counts["plain"] - counts["scaled"]) <= 1


def test_theorem_is_the_bound_with_dense_norms(pruned):
    """One layer pruned alone leaves all later norms dense: then its curve is the bound of Theorem 3.2 itself."""
    model, statistics, paths = pruned
    curves = theorem(paths, model)
    assert list(curves) == list(paths)
    for name, path in paths.items():
        counts, losses = curves[name]
        knots = path._knots[0]  # measured, not read between them
        index = int(torch.searchsorted(counts, knots[torch.searchsorted(knots, path.total // 2)]))
        kept = dict.fromkeys(paths, 1.0) | {name: 1 - int(counts[index]) / path.removable}
        result = lobs.prune(model, statistics, densities=kept, paths=paths)
        assert lobs.error_bound(model, result.model, statistics).total == pytest.approx(float(losses[index]), rel=1e-6)


def test_fisher_is_half_of_sensitivity_times_error(pruned):
    paths = pruned[2]
    units = {name: len(path.weight) for name, path in paths.items()}
    mean = {"0": 2.0, "3": 0.5, "5": 4.0}
    # The mean over the units counts: of `apart` whatever `together` is, and the other way round.
    for summed in (False, True):
        given = {}
        for name, value in mean.items():
            looked_at = torch.linspace(0, 2 * value, units[name]).double()
            other = torch.full((units[name],), torch.nan)
            given[name] = Sensitivity(looked_at, other) if summed else Sensitivity(other, looked_at)
        curves = fisher(paths, given, summed=summed)
        for name, scale in (("0", 1.0), ("3", 0.25), ("5", 2.0)):
            counts, losses = curves[name]
            torch.testing.assert_close(losses, scale * paths[name].layer_error()[counts])


def test_fisher_by_units_is_half_of_the_weighted_sum_of_their_errors(pruned):
    paths = pruned[2]
    g = {name: torch.linspace(0.5, 3, len(path.weight)).double() for name, path in paths.items()}
    weighted = {name: path.weighted(g[name]) for name, path in paths.items()}
    for name, (counts, losses) in fisher_units(weighted).items():
        path = paths[name]
        measured = torch.isin(counts, weighted[name]._knots[0])
        counts, losses = counts[measured], losses[measured]
        assert len(counts) > 20
        changes = [weighted[name].at(int(count))[0] - path.weight for count in counts]
        moment = path.statistics.second_moment
        errors = [((change.double() @ moment) * change).sum(1) for change in changes]
        expected = torch.stack([(g[name] * error).sum() / 2 for error in errors]).cummax(0).values
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-9)


def test_losses_by_name_are_those_of_the_sensitivities(pruned):
    model, _, paths = pruned
    batches = [torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(2))]
    found = output_sensitivity(model, batches, list(paths))
    by_units = fisher_units({name: path.weighted(found[name].together) for name, path in paths.items()})
    assert not torch.allclose(found["0"].together, found["0"].apart)
    named = {"fisher": fisher(paths, found), "fisher_summed": fisher(paths, found, True), "fisher_units": by_units}
    for allocation, expected in named.items():
        given = loss_curves(paths, allocation, model=model, batches=batches)
        assert list(given) == list(paths)
        for name, pair in given.items():
            assert all(torch.equal(one, other) for one, other in zip(pair, expected[name], strict=True))
    shared = loss_curves(paths, "global", model=model, batches=batches)
    assert all(torch.equal(shared[name][1], curve[1]) for name, curve in fisher(paths, found).items())


def test_names_without_curves_are_refused(pruned):
    for name in ("uniform", "even"):
        with pytest.raises(ValueError, match=f"unknown allocation with loss curves '{name}': accepted are global, rel"):
            loss_curves(pruned[2], name)
    assert loss_curves(pruned[2], "global").keys() == pruned[2].keys()


def test_inputs_that_do_not_count_are_said():
    torch.manual_seed(0)
    model, inputs = Normalised(16, 8, 4).eval(), X.clone()
    inputs[3] = 0.0
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [inputs]), "magnitude")
    with pytest.warns(UserWarning, match="the gradients of 1 inputs are NaN or infinite at layer '0'"):
        loss_curves(paths, "fisher", model=model, batches=[inputs])


def test_a_layer_whose_loss_is_nothing_has_no_relative_loss():
    torch.manual_seed(0)
    samples = torch.randn(50, 6, dtype=torch.float64)
    path = make("magnitude")(torch.zeros(4, 6, dtype=torch.float64), lobs.LayerStatistics.from_samples(samples))
    counts, losses = relative({"zero": path})["zero"]
    assert int(counts[-1]) == path.total and not losses.any()


def test_theorem_counts_a_later_convolution_as_often_as_an_input_stands_in_its_patches():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    inputs = torch.randn(30, 1, 6, 6, dtype=torch.float64)
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [inputs]), "magnitude")
    curves = theorem(paths, model)
    second, third = (float(model[index].weight.detach().norm()) for index in (2, 5))
    # 25 positions of the first layer and 4 of the second an image; a kernel of 3 by steps of 2 overlaps twice each way.
    for name, positions, growth in (("0", 25, second * 2 * third), ("2", 4, third), ("5", 1, 1.0)):
        counts, losses = curves[name]
        errors = paths[name].curve_points()[1]
        torch.testing.assert_close(losses, growth * (positions * errors).sqrt())
        assert int(counts[-1]) == paths[name].total
    assert list(curves) == ["0", "2", "5"]


@pytest.mark.parametrize("measurable", [False, True])
def test_only_global_is_an_alias(measurable):
    assert resolved("global", measurable) == ("fisher" if measurable else "relative")
    for name in ("uniform", "relative", "theorem", "measured", "even"):
        assert resolved(name, measurable) == name


def test_what_an_allocation_needs_is_said_before_anything_is_measured(pruned):
    model, _, paths = pruned
    batches = [torch.randn(4, 1, 6, 6)]
    for name in ("theorem", "fisher", "fisher_summed", "fisher_units", "measured", "measured_joint"):
        with pytest.raises(ValueError, match=f"allocation '{name}' needs the dense network: give model="):
            loss_curves(paths, name, batches=batches)
        if name != "theorem":
            with pytest.raises(ValueError, match=f"allocation '{name}' needs calibration images: give batches="):
                loss_curves(paths, name, model=model)
    for curve, expected in zip(
        loss_curves(paths, "theorem", model=model).values(), theorem(paths, model).values(), strict=True
    ):
        assert all(torch.equal(one, other) for one, other in zip(curve, expected, strict=True))
    joint, start = (loss_curves(paths, name, model=model, batches=batches) for name in ("measured_joint", "fisher"))
    assert all(torch.equal(joint[name][1], start[name][1]) for name in paths)
