"""Measured losses against a plain loop, their interpolation, and the joint descent."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs
from lobs.allocation import output_distance
from lobs.allocation.budget import Budget, problem
from lobs.allocation.loss_curves import relative
from lobs.allocation.output_distance import OutputDistance, along_errors, measured_losses, refine_jointly
from lobs.layers.matrix import set_weight_matrix
from lobs.layers.network import prunable_layers


class Residual(nn.Module):
    """No chain: a layer's inputs do not follow from the layer before alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, inputs):
        hidden = self.stem(inputs).relu()
        return self.head(hidden + self.body(hidden).relu())


def chain():
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)
    )


@pytest.fixture(params=[chain, Residual])
def case(request):
    torch.manual_seed(0)
    model = request.param().double()
    batches = [3 * torch.randn(size, 6, dtype=torch.float64) for size in (50, 30)]
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "exact_obs")
    return model, batches, paths


@torch.no_grad()
def plain_distance(model, batches, weights, distance):
    changed = copy.deepcopy(model).eval()
    for name, weight in weights.items():
        set_weight_matrix(prunable_layers(changed)[name], weight)
    inputs = torch.cat(batches)
    dense, pruned = copy.deepcopy(model).eval()(inputs), changed(inputs)
    if distance == "squared":
        return float((dense - pruned).square().sum(1).mean())
    return float(functional.kl_div(pruned.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True))


@pytest.mark.parametrize("distance", ["kl", "squared"])
def test_points_are_those_of_a_plain_loop(case, distance):
    model, batches, paths = case
    before = copy.deepcopy(model.state_dict())
    curves = measured_losses(model, paths, iter(batches), grid=5, distance=distance)
    for name, (counts, losses) in curves.items():
        assert counts[0] == 0 and losses[0] == 0
        assert counts[-1] == paths[name].total
        assert (counts.diff() > 0).all() and len(counts) >= 5
        for count, loss in zip(counts.tolist(), losses.tolist(), strict=True):
            expected = plain_distance(model, batches, {name: paths[name].at(count)[0]}, distance)
            assert loss == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_the_grid_is_even_in_the_logarithm_of_the_density():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 40))
    inputs = torch.randn(200, 100)
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [inputs]), "magnitude")
    counts, _ = measured_losses(model, paths, [inputs])["0"]
    kept = 1 - counts.double() / paths["0"].removable
    assert kept[0] == 1 and kept[-1] == 0 and len(kept) == 14
    ratios = kept[2:-1] / kept[1:-2]
    assert (ratios - ratios.mean()).abs().max() < 0.05
    assert kept[1] == pytest.approx(0.6) and kept[-2] == pytest.approx(0.003, abs=5e-4)


def test_between_points_the_loss_follows_a_power_of_the_error(case):
    path = next(iter(case[2].values()))
    errors = path.layer_error()
    truth = 3 * errors**1.7
    knots = torch.tensor([0, 20, 50, path.total])
    counts, losses = along_errors((knots, truth[knots]), path)
    assert counts.tolist() == list(range(path.total + 1))
    torch.testing.assert_close(losses[20:], truth[20:])
    torch.testing.assert_close(losses[knots], truth[knots])
    assert (losses.diff() >= -1e-12).all()


def test_interpolation_stays_between_points_that_are_zero_or_fall(case):
    path = next(iter(case[2].values()))
    knots = torch.tensor([0, 10, 30, 50, path.total])
    points = torch.tensor([0.0, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    counts, losses = along_errors((knots, points), path)
    torch.testing.assert_close(losses[torch.searchsorted(counts, knots)], points)
    assert losses.isfinite().all()
    assert (losses[:11] == 0).all() and (losses[30:] >= 1 - 1e-9).all() and losses.max() <= 2 + 1e-9


def test_the_joint_descent_never_gets_worse_and_meets_the_budget(case):
    model, batches, paths = case
    measure = OutputDistance(model, batches)
    task = problem(paths, Budget(density=0.3))
    found = refine_jointly(measure, paths, relative(paths), task)
    assert found.after <= found.before
    assert task.cost(found.counts) == task.bound
    weights = {name: paths[name].at(count)[0] for name, count in found.counts.items()}
    assert found.after == pytest.approx(plain_distance(model, batches, weights, "kl"), rel=1e-6)
    assert measure.whole() == 0, "the dense weights are back"
    few = refine_jointly(measure, paths, relative(paths), task, trials=3)
    assert few.trials <= 3


class Counted(OutputDistance):
    """Counts the batches that it measures."""

    batches = 0

    def by_batch(self):
        for part in super().by_batch():
            self.batches += 1
            yield part


def test_a_hopeless_change_is_given_up_early_and_that_changes_nothing(case, monkeypatch):
    model, _, paths = case
    images = 3 * torch.randn(400, 6, dtype=torch.float64)
    task = problem(paths, Budget(density=0.3))

    def refined():
        measure = Counted(model, images.split(50))
        shown = []
        found = refine_jointly(
            measure, paths, relative(paths), task, progress=lambda items: (shown.append(len(items)), items)[1]
        )
        assert shown == [60]
        return found, measure.batches

    early, batches = refined()
    monkeypatch.setattr(output_distance, "HOPELESS", float("inf"))
    patient, all_batches = refined()
    assert early == patient
    assert all_batches == 8 * patient.trials
    assert batches < 0.8 * all_batches


def test_the_joint_descent_repairs_a_bad_start(case):
    """Losses that call one layer worthless ruin it; the measured network says so."""
    model, batches, paths = case
    curves = relative(paths)
    name = list(paths)[-1]
    curves[name] = curves[name][0], 1e-2 * curves[name][1]
    task = problem(paths, Budget(density=0.3, limits={"*": (0.0, 1.0)}))  # it may lose everything
    found = refine_jointly(OutputDistance(model, batches), paths, curves, task)
    assert found.after < 0.8 * found.before


def test_errors_are_named(case):
    model, batches, paths = case
    with pytest.raises(ValueError, match="unknown distance 'cosine': accepted are auto, kl, squared, relative"):
        OutputDistance(model, batches, "cosine")
    with pytest.raises(ValueError, match="no calibration batch"):
        OutputDistance(model, [])
    with pytest.raises(ValueError, match="grid must be at least 2 densities, got 1"):
        measured_losses(model, paths, batches, grid=1)
    maps = nn.Sequential(nn.Conv2d(1, 2, 3))
    images = [torch.randn(2, 1, 5, 5)]
    with pytest.raises(ValueError, match=r"class logits \[images, classes\], got a tensor of shape \(2, 2, 3, 3\)"):
        OutputDistance(maps, images, "kl")
    assert OutputDistance(maps, images, "squared").whole() == 0


def test_where_the_error_stands_still_the_loss_follows_the_count():
    class Still:
        def curve_points(self, most):
            return torch.arange(41), None

        def layer_error(self, count):
            return max(2.0, count / 10)

    knots, losses = torch.tensor([0, 20, 40]), torch.tensor([1.0, 3.0, 6.0], dtype=torch.float64)
    counts, found = along_errors((knots, losses), Still())
    assert counts.tolist() == list(range(41))
    torch.testing.assert_close(found[:21], 3.0 ** (torch.arange(21).double() / 20))
