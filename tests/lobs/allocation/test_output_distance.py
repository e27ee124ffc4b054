"""Measured losses against a plain loop, their interpolation, and the joint descent."""

import copy
import math

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
    knots, losses = torch.tensor([0, 10, 20, 40]), torch.tensor([1.0, 3.0, 6.0, 9.0], dtype=torch.float64)
    _, found = along_errors((knots, losses), Still())
    torch.testing.assert_close(found[10:21], 3 * 2.0 ** (torch.arange(11).double() / 10))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_along_a_stretch_that_costs_nothing_at_first_the_loss_is_linear_in_the_error(scale):
    class Late:
        def curve_points(self, most):
            return torch.arange(26), None

        def layer_error(self, count):
            return max(0.0, (count - 10) / 10)

    knots, losses = torch.tensor([0, 5, 15, 25]), torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    found = along_errors((knots, scale * losses), Late())[1] / scale
    # The error is 0 up to 10 removals, 0.5 at 15 and 1.5 at 25: from there on L = 2 (E / 0.5)^b.
    expected = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    assert found[10:16].tolist() == pytest.approx(expected)
    power = math.log(4 / 2) / math.log(1.5 / 0.5)
    assert found[15:].tolist() == pytest.approx([2 * ((count - 10) / 5) ** power for count in range(15, 26)])
    assert found[:6].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), "the error stands still at 0"


def test_a_layer_that_can_lose_nothing_has_one_point():
    model, batches = chain(), [torch.randn(40, 6)]
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "apoz")
    curves = measured_losses(model, paths, batches)
    assert paths["5"].total == 0
    assert [part.tolist() for part in curves["5"]] == [[0], [0.0]]
    assert [part.tolist() for part in along_errors(curves["5"], paths["5"])] == [[0], [0.0]]


def test_a_grid_of_two_has_the_highest_and_the_lowest_density():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(100, 20)), torch.randn(50, 100)
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, [inputs]), "magnitude")
    shown = []
    curves = measured_losses(model, paths, [inputs], grid=2, progress=lambda names: (shown.append(names), names)[1])
    assert curves["0"][0].tolist() == [0, 800, 1994, 2000]
    assert shown == [["0"]]


class Answers(nn.Module):
    """A network whose answer is made of a layer's outputs."""

    def __init__(self, made):
        super().__init__()
        self.layer, self.made = nn.Linear(6, 4), made

    def forward(self, inputs):
        return self.made(self.layer(inputs))


def masked(outputs):
    return outputs.masked_fill(torch.tensor([False, True, False, False]), float("-inf"))


@torch.no_grad()
def test_masked_classes_add_nothing_and_what_is_undefined_is_as_far_as_can_be():
    torch.manual_seed(0)
    model, inputs = Answers(masked).double(), torch.randn(30, 6, dtype=torch.float64)
    weight = torch.cat([torch.randn(4, 6), model.layer.bias.detach()[:, None]], 1).double()
    bare = OutputDistance(model, [inputs[:20], inputs[20:]])
    assert (bare.distance, bare.whole()) == ("kl", 0.0)
    changed = inputs @ weight[:, :-1].T + weight[:, -1]
    one, other = (part[:, [0, 2, 3]].log_softmax(1) for part in (model.layer(inputs), changed))
    expected = functional.kl_div(other, one, reduction="batchmean", log_target=True)
    assert bare.with_weights({"layer": weight}) == pytest.approx(float(expected), rel=1e-6)
    assert bare.whole() == 0.0, "the dense weights are back"
    squares = OutputDistance(model, [inputs], "squared").with_weights({"layer": weight})
    assert squares == pytest.approx(
        float((changed - model.layer(inputs))[:, [0, 2, 3]].square().sum(1).mean()), rel=1e-6
    )
    for distance in ("kl", "squared"):
        weight[0, 0] = float("nan")
        assert OutputDistance(model, [inputs], distance).with_weights({"layer": weight}) == float("inf")


@torch.no_grad()
def test_several_outputs_count_by_their_own_spread_and_one_that_never_changes_not_at_all():
    def made(outputs):
        return {"wide": 100 * outputs, "narrow": outputs[:, :1], "same": torch.ones(len(outputs), 2), "kind": "pair"}

    torch.manual_seed(0)
    model, inputs = Answers(made), torch.randn(30, 6)
    weight = torch.cat([torch.randn(4, 6), model.layer.bias[:, None]], 1)
    measure = OutputDistance(model, [inputs[:20], inputs[20:]])
    assert measure.distance == "relative"
    dense, changed = model.layer(inputs).double(), (inputs @ weight[:, :-1].T + weight[:, -1]).double()
    expected = 0.0
    for columns in (slice(0, 4), slice(0, 1)):
        own = dense[:, columns]
        spread = (own - own.mean(0)).square().sum(1).mean()
        expected += float((changed[:, columns] - own).square().sum(1).mean() / spread)
    assert measure.with_weights({"layer": weight}) == pytest.approx(expected, rel=1e-5)
    assert measure.by_image().shape == (30,)


def test_another_network_is_compared_and_must_answer_in_the_same_shape():
    torch.manual_seed(0)
    model, other, inputs = chain().double(), chain().double(), torch.randn(30, 6, dtype=torch.float64)
    found = OutputDistance(model, [inputs], "squared").of_network(other)
    with torch.no_grad():
        assert found == pytest.approx(float((other.eval()(inputs) - model.eval()(inputs)).square().sum(1).mean()))
    with pytest.raises(ValueError, match=r"outputs have shapes \[\(30, 8\)\], the dense one's \[\(30, 4\)\]: outputs"):
        OutputDistance(model, [inputs], "squared").of_network(other[:-1])


def test_class_logits_that_are_the_same_for_all_images_are_compared_all_the_same():
    model, inputs = nn.Sequential(nn.Linear(6, 3)), torch.randn(20, 6)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    measure = OutputDistance(model, [inputs])
    assert (measure.distance, measure.whole()) == ("kl", 0.0)
    changed = torch.zeros(3, 7)
    expected = model[0].bias.detach().log_softmax(0)
    expected = float((expected.exp() * (expected + math.log(3))).sum())
    assert measure.with_weights({"0": changed}) == pytest.approx(expected, rel=1e-5)
