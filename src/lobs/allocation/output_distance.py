"""Losses measured on the network itself: one layer pruned at a time, or all of them together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from lobs.allocation.budget import Problem
from lobs.allocation.knapsack import Curve, equal_slopes
from lobs.base.execution import shown
from lobs.base.network_inputs import Call, Inputs, Output
from lobs.calibration.batches import called_batches
from lobs.calibration.inputs import answer, network_input
from lobs.calibration.outputs import UNCOMPARABLE, class_logits, fitting_distance, output_tensors, per_input, spreads
from lobs.layers.checks import independent_copy
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import set_weight_matrix
from lobs.layers.network import bias_columns, prunable_layers
from lobs.solvers.path import PruningPath

DISTANCES = ("auto", "kl", "squared", "relative")
GRID = 12
LOWEST_DENSITY = 0.003
HIGHEST_DENSITY = 0.6
# Standard errors by which a joint change has to be better: the mean over images hangs on few of them.
CERTAINTY = 1.0
# A change that after this many images is worse by so many standard errors is given up without measuring the others.
EARLY_IMAGES, HOPELESS = 50, 2.0
# Trials of `refine_jointly`: so many rounds over all factors, each up and down, and no fewer than 60.
ROUNDS, FEWEST_TRIALS = 4, 60


class OutputDistance:
    """How far a changed network's outputs are from the dense one's on fixed images, smaller is better.

    ``"kl"``: the mean over images of ``KL(softmax(dense) || softmax(pruned))`` in nats, for class logits.
    ``"squared"``: the mean over images of ``||pruned - dense||^2``. ``"relative"``: the same, each output tensor's over
    its own spread ``mean ||dense - mean dense||^2``, for everything that is no class logits. ``"auto"``: kl or
    relative, by `fitting_distance`.

    Args:
        model: the dense network; a copy is kept.
        batches: of the kinds that `lobs.collect_statistics` takes; read once and kept in memory.
        distance: a name in `DISTANCES`.
        call: runs the network on a batch where its kind needs that (`lobs.collect_statistics`).
        output: what of the outputs is compared, likewise.

    Attributes:
        distance: the one that is measured, never ``auto``.

    Raises:
        ValueError: an unknown distance, no batch, outputs that are not class logits although KL is asked for, or that
            are the same for all images.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable,
        distance: str = "auto",
        *,
        call: Call | None = None,
        output: Output | None = None,
    ) -> None:
        if distance not in DISTANCES:
            raise ValueError(f"unknown distance {distance!r}: accepted are {', '.join(DISTANCES)}")
        self.model = independent_copy(model)
        self.layers = prunable_layers(self.model)
        self._bias = bias_columns(self.model)
        batches = list(called_batches(batches, model, call, output))
        self._inputs = [network_input(batch, model) for batch in batches]
        if not self._inputs:
            raise ValueError("no calibration batch: batches is empty (an iterator that was already used up?)")
        with torch.no_grad(), evaluation_mode(self.model):
            outputs = [answer(self.model, inputs.clone(), "a batch") for inputs in self._inputs]
        self.distance = fitting_distance(outputs[0], batches[0]) if distance == "auto" else distance
        self._dense = [self._target(output) for output in outputs]
        self._scales = [1.0] * len(self._dense[0])
        if self.distance == "relative":
            self._scales = spreads(self._dense, sum(map(len, self._inputs)))

    def whole(self) -> float:
        """The distance of the network as its layers' weights are now."""
        return float(self.by_image().mean())

    def of_network(self, network: nn.Module) -> float:
        """The distance of another network."""
        return float(torch.cat(list(self._measure(network, self._inputs))).mean())

    def with_weights(self, weights: Mapping[str, Tensor]) -> float:
        """The distance with some layers' weights changed; their own are put back.

        Args:
            weights: ``[out, d]`` by layer.

        Returns:
            The distance.
        """
        own = {name: copy.deepcopy(self.layers[name].state_dict()) for name in weights}
        for name, weight in weights.items():
            self.place(name, weight)
        distance = self.whole()
        for name, state in own.items():
            self.layers[name].load_state_dict(state)
        return distance

    def place(self, name: str, weight: Tensor) -> None:
        """Write a weight ``[out, d]`` into a layer."""
        set_weight_matrix(self.layers[name], weight, self._bias[name])

    def by_image(self) -> Tensor:
        """The same of every image, float64 ``[images]``; its mean is the distance."""
        return torch.cat(list(self.by_batch()))

    def by_batch(self) -> Iterator[Tensor]:
        """The same batch by batch, each measured when it is asked for."""
        return self._measure(self.model, self._inputs)

    def of_layer(self, name: str, weights: Iterable[Tensor]) -> list[float]:
        """The distance with each of some weights in one layer; its own weight is put back.

        What runs before the layer runs once, where the network is an `nn.Sequential` that holds the layer itself.

        Args:
            name: of the layer.
            weights: ``[out, d]`` each.

        Returns:
            A distance for every weight.
        """
        prefix, suffix = nn.Sequential(), self.model
        if all(batch.call is None for batch in self._inputs):
            prefix, suffix = _split(self.model, name)
        module = self.layers[name]
        own = copy.deepcopy(module.state_dict())
        with torch.no_grad(), evaluation_mode(self.model):
            inputs = [self._through(prefix, batch) for batch in self._inputs] if len(prefix) else self._inputs
        distances = []
        for weight in weights:
            self.place(name, weight)
            distances.append(float(torch.cat(list(self._measure(suffix, inputs))).mean()))
        module.load_state_dict(own)
        return distances

    @staticmethod
    def _through(prefix: nn.Module, batch: Inputs) -> Inputs:
        """A batch's inputs of the layers behind the first ones."""
        return replace(batch, args=(replace(batch.clone(), output=None).run(prefix),), kwargs={})

    @torch.no_grad()
    def _measure(self, network: nn.Module, inputs: Sequence[Inputs]) -> Iterator[Tensor]:
        with evaluation_mode(network):
            for batch, own, dense in zip(inputs, self._inputs, self._dense, strict=True):
                outputs = self._target(batch.clone().run(network))
                yield self._distances(dense, outputs, len(own))

    def _distances(self, dense: Sequence[Tensor], outputs: Sequence[Tensor], images: int) -> Tensor:
        """Of every image of a batch."""
        if [part.shape for part in dense] != [part.shape for part in outputs]:
            raise ValueError(
                f"the pruned network's outputs have shapes {[tuple(part.shape) for part in outputs]}, the dense one's "
                f"{[tuple(part.shape) for part in dense]}: {UNCOMPARABLE}"
            )
        if self.distance == "kl":  # a class whose probability is 0 (masked logits) adds nothing
            terms = [
                torch.where(one.exp() > 0, one.exp() * (one - other), 0.0).flatten(1).sum(1)
                for one, other in zip(dense, outputs, strict=True)
            ]
        else:
            terms = [
                per_input(torch.where(one.isfinite(), (other - one).square(), 0.0), images) / scale
                for one, other, scale in zip(dense, outputs, self._scales, strict=True)
                if scale
            ]
        # What only the pruned network leaves undefined is as far as can be.
        return torch.stack(terms).sum(0).nan_to_num(nan=float("inf"), posinf=float("inf")).clamp_min(0.0)

    def _target(self, outputs: object) -> list[Tensor]:
        if self.distance == "kl":
            return [class_logits(outputs).double().log_softmax(dim=1)]
        return [part.double() for part in output_tensors(outputs)]


def measured_losses(
    model: nn.Module,
    paths: Mapping[str, PruningPath],
    batches: Iterable,
    *,
    grid: int = GRID,
    distance: str = "auto",
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, Curve]:
    """For each layer alone: how far the network's outputs move when this layer is pruned along its path.

    Measured at about ``grid`` densities, evenly spaced in their logarithm, and with nothing left.

    Args:
        model: the dense network; not changed.
        paths: of its layers.
        batches: calibration images, see `OutputDistance`; some thousand are enough.
        grid: densities per layer, at least 2.
        distance: a name in `DISTANCES`.
        progress: wraps the iterable of layer names.

    Returns:
        Removals and distances by layer; the first point is (0, 0), the last is the path's end.

    Raises:
        ValueError: the grid is too small, or what `OutputDistance` raises.
    """
    if grid < 2:
        raise ValueError(f"grid must be at least 2 densities, got {grid}")
    measure = OutputDistance(model, batches, distance)
    curves = {}
    for name in shown(list(paths), progress):
        path = paths[name]
        kept = torch.logspace(0, 1, grid, base=LOWEST_DENSITY / HIGHEST_DENSITY, dtype=torch.float64) * HIGHEST_DENSITY
        counts = path.removable - (kept * path.removable).round().long()
        counts = torch.cat([counts[(counts > 0) & (counts < path.total)], torch.tensor([path.total])]).unique()
        counts = counts[counts > 0]
        losses = measure.of_layer(name, (path.at(int(count))[0] for count in counts))
        curves[name] = torch.cat([torch.zeros(1).long(), counts]), torch.tensor([0.0, *losses], dtype=torch.float64)
    return curves


def along_errors(points: Curve, path: PruningPath, most: int = 400) -> Curve:
    """Measured points carried over to the counts between them by the path's own layer error E.

    Between two points the loss follows a power of E, ``L = a E^b``, through both of them: to second order L is
    proportional to E, and the measured points correct that. Where one of them is 0, L is linear in E.

    Args:
        points: measured losses.
        path: of the layer.
        most: about how many counts the result has, the measured ones besides.

    Returns:
        The denser curve, through all points.
    """
    knots, losses = points
    if len(knots) == 1:
        return points
    counts = torch.cat([path.curve_points(most)[0], knots]).unique()
    errors = torch.tensor([path.layer_error(int(count)) for count in counts], dtype=torch.float64)
    at = torch.searchsorted(counts, knots)
    right = torch.searchsorted(knots, counts).clamp_min(1)
    left = right - 1

    def share(values: Tensor) -> Tensor:
        """Where E stands between its values at the two points, 0 to 1; by counts where these are the same."""
        low, high = values[at[left]], values[at[right]]
        plain = (counts - knots[left]).double() / (knots[right] - knots[left])
        return torch.where(high > low, (values - low) / (high - low), plain)

    tiny = torch.finfo(torch.float64).tiny
    linear = torch.lerp(losses[left], losses[right], share(errors))
    logs = losses.clamp_min(tiny).log()
    power = torch.lerp(logs[left], logs[right], share(errors.clamp_min(tiny).log())).exp()
    powers = (errors[at[left]] > 0) & (losses[left] > 0) & (losses[right] > 0)
    result = torch.where(powers, power, linear)
    result[at] = losses
    return counts, result


@dataclass(frozen=True)
class Refinement:
    """What `refine_jointly` found.

    Attributes:
        counts: removals by layer.
        before: the pruned network's distance at the start.
        after: at the end.
        trials: networks that were measured.
    """

    counts: dict[str, int]
    before: float
    after: float
    trials: int


def refine_jointly(
    measure: OutputDistance,
    paths: Mapping[str, PruningPath],
    curves: Mapping[str, Curve],
    problem: Problem,
    *,
    trials: int | None = None,
    step: float = 4.0,
    smallest_step: float = 1.2,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Refinement:
    """Coordinate descent on the network with all layers pruned: it sees how their errors act together.

    Every layer's losses carry a factor, 1 at first, and `equal_slopes` shares the budget out for the weighted sum, so
    that it is always met. One factor at a time is multiplied or divided by ``step``; a change stays where the distance
    falls by more than `CERTAINTY` standard errors (of the mean difference over images). After a round without any, the
    step becomes its own root, until it is below ``smallest_step``.

    Args:
        measure: the dense network and the images.
        paths: of all layers.
        curves: their losses to start from.
        problem: budget and limits.
        trials: networks measured at most; None for `ROUNDS` rounds up and down, or `FEWEST_TRIALS`.
        step: first factor.
        smallest_step: last one.
        progress: wraps the iterable of trials.

    Returns:
        The best counts that were met, and the distances.
    """
    most = max(FEWEST_TRIALS, 2 * ROUNDS * len(paths)) if trials is None else trials
    bar = iter(shown(range(most), progress))
    next(bar, None)
    factors = dict.fromkeys(paths, 1.0)
    placed: dict[str, int] = {}

    def share() -> dict[str, int]:
        weighted = {name: (counts, losses * factors[name]) for name, (counts, losses) in curves.items()}
        return equal_slopes(weighted, problem)

    def place(counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            if placed.get(name) != count:
                measure.place(name, paths[name].at(count)[0])
                placed[name] = count

    own = {name: copy.deepcopy(measure.layers[name].state_dict()) for name in paths}
    best = share()
    place(best)
    before = lowest = measure.by_image()
    used = 1
    while step >= smallest_step and used < most:
        improved = False
        for name, factor in product(paths, (step, 1 / step)):
            kept = factors[name]
            factors[name] = kept * factor
            counts = share()
            if counts == best or used >= most:
                factors[name] = kept
                continue
            used += 1
            next(bar, None)
            place(counts)
            values = _better(measure, lowest)
            if values is None:
                factors[name] = kept
            else:
                lowest, best, improved = values, counts, True
        if not improved:
            step = step**0.5
    for name, state in own.items():
        measure.layers[name].load_state_dict(state)
    return Refinement(best, float(before.mean()), float(lowest.mean()), used)


def _better(measure: OutputDistance, lowest: Tensor) -> Tensor | None:
    """The distances of all images, if they are certainly lower; most changes are worse, and soon seen to be."""
    parts: list[Tensor] = []
    for part in measure.by_batch():
        parts.append(part)
        values = torch.cat(parts)
        gain = lowest[: len(values)] - values
        error = float(gain.std(correction=0)) / len(gain) ** 0.5
        if len(gain) >= EARLY_IMAGES and float(gain.mean()) < -HOPELESS * error:
            return None
    return values if float(gain.mean()) > CERTAINTY * error else None


def _split(model: nn.Module, name: str) -> tuple[nn.Sequential, nn.Module]:
    """What runs before a layer, and the rest with the layer first; nothing and everything in a general network."""
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward and name in model._modules:
        index = list(model._modules).index(name)
        return nn.Sequential(*list(model)[:index]), nn.Sequential(*list(model)[index:])
    return nn.Sequential(), model
