"""The joint descent's steps, on distances that the tests make up."""

import math

import pytest
import torch
from torch import nn

from lobs.allocation import output_distance
from lobs.allocation.output_distance import OutputDistance, refine_jointly


class Scripted:
    """Stands for the measured network: its distance is a function of the factors that the losses were given."""

    def __init__(self, monkeypatch, names, distance, fixed=()):
        self.layers, self.paths = ({name: kind() for name in names} for kind in (nn.Identity, Looked))
        self.curves = {name: (torch.arange(2), torch.tensor([0.0, 1.0]).double()) for name in names}
        self.distance, self.fixed = distance, fixed
        self.tried, self.placed = [], {}
        monkeypatch.setattr(output_distance, "equal_slopes", self.share)

    def share(self, curves, problem):
        """Thousandths of the factor's power of two, for what is not fixed."""
        return {
            name: 0 if name in self.fixed else round(1000 * math.log2(losses[-1]))
            for name, (_, losses) in curves.items()
        }

    def place(self, name, count):
        self.placed[name] = count

    def by_batch(self):
        powers = {name: round(count / 1000, 2) for name, count in self.placed.items()}
        self.tried.append(tuple(powers.values()))
        yield torch.full((8,), float(self.distance(powers)), dtype=torch.float64)

    def by_image(self):
        return torch.cat(list(self.by_batch()))

    def refined(self, **options):
        return refine_jointly(self, self.paths, self.curves, None, **options)


class Looked:
    """A path that gives the count itself in the place of a weight."""

    def at(self, count):
        return count, None


def around(*steps, names=2):
    """One factor at a time up and down by powers of two, about 1."""
    return [
        tuple(sign * step if name == moved else 0.0 for name in range(names))
        for step in steps
        for moved in range(names)
        for sign in (1, -1)
    ]


def test_where_nothing_helps_every_factor_goes_up_and_down_once_by_each_step(monkeypatch):
    script = Scripted(monkeypatch, "ab", lambda powers: sum(abs(power) for power in powers.values()))
    found = script.refined()
    assert script.tried == [(0.0, 0.0), *around(2, 1, 0.5)]
    assert (found.counts, found.before, found.after, found.trials) == ({"a": 0, "b": 0}, 0.0, 0.0, 13)
    again = Scripted(monkeypatch, "ab", script.distance)
    assert again.refined(smallest_step=2.0).trials == 9, "the smallest step is one of them"
    assert again.tried == [(0.0, 0.0), *around(2, 1)]


def test_what_helps_stays_and_is_built_upon(monkeypatch):
    script = Scripted(monkeypatch, "ab", lambda powers: (powers["a"] - 2) ** 2 + (powers["b"] + 3) ** 2)
    found = script.refined()
    assert (found.counts, found.before, found.after) == ({"a": 2000, "b": -3000}, 13.0, 0.0)
    assert script.tried[:5] == [(0, 0), (2, 0), (0, 0), (2, 2), (2, -2)]
    # The step stays 4 as long as it helps; 2 finds the best, and then no step does any better.
    moves = [(2, 0), (-2, 0), (0, 2), (0, -2), (1, 0), (-1, 0), (0, 1), (0, -1)]
    assert script.tried[5:13] == [(2 + a, -2 + b) for a, b in moves]
    best = [
        (0, sign * step) if moved else (sign * step, 0) for step in (1, 0.5) for moved in (0, 1) for sign in (1, -1)
    ]
    assert script.tried[13:] == [(2 + a, -3 + b) for a, b in best]
    assert found.trials == len(script.tried) == 21


@pytest.mark.parametrize("trials", [1, 2, 5, 13, 14])
def test_no_more_networks_are_measured_than_asked_for(monkeypatch, trials):
    script = Scripted(monkeypatch, "ab", lambda powers: sum(abs(power) for power in powers.values()))
    assert script.refined(trials=trials).trials == len(script.tried) == min(trials, 13)


def test_factors_that_move_no_count_are_passed_over_and_put_back(monkeypatch):
    script = Scripted(monkeypatch, "abc", lambda powers: sum(abs(power) for power in powers.values()), fixed="ac")
    given, share = [], script.share

    def watched(curves, problem):
        given.append(tuple(float(losses[-1]) for _, losses in curves.values()))
        return share(curves, problem)

    monkeypatch.setattr(output_distance, "equal_slopes", watched)
    assert script.refined().trials == 7
    assert script.tried == [(0.0, step, 0.0) for step in (0.0, 2, -2, 1, -1, 0.5, -0.5)]
    powers = [(0, 0, 0), *around(2, 1, 0.5, names=3)]
    assert torch.tensor(given).log2().tolist() == [pytest.approx(row) for row in powers]


@pytest.mark.parametrize(("layers", "most"), [(2, 60), (7, 60), (8, 64), (20, 160)])
def test_so_many_trials_are_announced_as_there_are_rounds_over_the_layers(monkeypatch, layers, most):
    script = Scripted(monkeypatch, [f"layer{index}" for index in range(layers)], lambda powers: 0.0)
    shown = []
    found = script.refined(progress=lambda trials: (shown.append(len(trials)), trials)[1])
    assert shown == [most]
    assert found.trials == min(most, 1 + 6 * layers)


class Parts:
    """Distances batch by batch, and how many were asked for."""

    def __init__(self, *parts):
        self.parts, self.asked = parts, 0

    def by_batch(self):
        for part in self.parts:
            self.asked += 1
            yield torch.tensor(part, dtype=torch.float64)


@pytest.mark.parametrize(("mean", "better"), [(0.52, True), (0.48, False), (-0.52, False)])
def test_a_change_stays_where_it_is_better_by_a_standard_error(mean, better):
    """Of four gains that spread by 1 around their mean, the mean has a standard error of a half."""
    gains = [mean + 1, mean - 1, mean + 1, mean - 1]
    found = output_distance._better(Parts([3 - gain for gain in gains]), torch.full((4,), 3.0).double())
    assert (found is not None) == better
    assert found is None or found.tolist() == pytest.approx([3 - gain for gain in gains])


@pytest.mark.parametrize(
    ("images", "mean", "asked"), [(50, -0.29, 1), (50, -0.27, 2), (48, -0.6, 2), (50, 0.29, 2), (100, -0.21, 1)]
)
def test_only_what_is_clearly_worse_on_enough_images_is_given_up(images, mean, asked):
    """Of 50 gains that spread by 1 the mean has a standard error of 0.141: twice that is 0.283."""
    first = [3 - mean - sign for sign in (1, -1) for _ in range(images // 2)]
    parts = Parts(first, [2.0] * 400)
    found = output_distance._better(parts, torch.full((images + 400,), 3.0).double())
    assert parts.asked == asked
    assert (found is None) == (asked == 1)


def test_a_change_of_next_to_nothing_is_no_negative_distance():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 5)).double(), torch.randn(200, 6, dtype=torch.float64)
    measure = OutputDistance(model, [inputs])
    with torch.no_grad():
        measure.place("0", torch.cat([model[0].weight * (1 + 1e-9), model[0].bias[:, None]], 1))
    distances = measure.by_image()
    assert (distances >= 0).all() and (distances < 1e-12).all()
