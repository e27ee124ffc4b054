"""DNS, dynamic network surgery (Guo et al. 2016): connections are cut and spliced back while the network trains.

Every layer k has a mask T_k and two thresholds a_k < b_k. An update of the masks cuts weights with |w| < a_k, splices
those with |w| >= b_k back and leaves the rest as they are. The network runs on W_k * T_k, and the loss's gradient with
respect to that product is applied to all of W_k, so that weights that are cut keep learning and may return.

`NetworkSurgery` does this as a callback. Between two minibatches the modules hold W_k * T_k and the callback holds W_k;
they change places just for the optimizer's step. So the backward pass gives the dense gradient as it stands, the
optimizer (momentum, decay) sees dense weights only, and a checkpoint is that of the plain network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lobs.experiment.data import Split
from lobs.experiment.evaluation import error_percent
from lobs.experiment.lwc import PerLayer, layer_weights, per_layer, selecting_value
from lobs.experiment.retraining import Retrained
from lobs.experiment.training import Classifier, Recipe, fit

# The gap that keeps a weight near the threshold from being cut and spliced in turn.
LOWER, UPPER = 0.9, 1.1


@dataclass(frozen=True, kw_only=True)
class SurgerySettings:
    """When masks are updated, and to which thresholds.

    Attributes:
        density: share of weights kept after every update; None leaves it to ``rate``, as published.
        rate: c in a = 0.9 (mu + c std) and b = 1.1 (mu + c std); one, or by layer name or pattern. With a density,
            all rates are multiplied by the one factor that gives it, so only their proportions count.
        gamma: of the probability of an update, (1 + gamma * iteration) ** -power.
        power: of the same.
        stop: the iteration from which the masks stay as they are, 1 or more.
    """

    stop: int
    density: float | None = None
    rate: PerLayer = 1.0
    gamma: float = 1e-4
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.density is not None and not 0 <= self.density <= 1:
            raise ValueError(f"density={self.density!r} is not accepted: a number from 0 to 1, or None")
        for key, least in (("gamma", 0), ("power", 0), ("stop", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)!r} is not accepted: a number, {least} or more")

    def probability(self, iteration: int) -> float:
        """Of an update of the masks before a minibatch; 1 before the first, 0 from ``stop`` on."""
        return (1 + self.gamma * iteration) ** -self.power if iteration < self.stop else 0.0


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a layer's |w|."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, weight: Tensor) -> Scale:
        """Measured over the weights that are not zero, in float64, with the population's standard deviation."""
        magnitudes = weight[weight != 0].double().abs()
        if not len(magnitudes):
            return cls(0.0, 0.0)
        return cls(float(magnitudes.mean()), float(magnitudes.std(correction=0)))

    def thresholds(self, rate: float) -> tuple[float, float]:
        """The thresholds a and b, (0.9, 1.1) times mu + c std, or 0 where that is negative."""
        middle = max(self.mean + rate * self.deviation, 0.0)
        return LOWER * middle, UPPER * middle


def operate(weight: Tensor, mask: Tensor, lower: float, upper: float) -> Tensor:
    """Update a mask: cut below ``lower``, splice from ``upper`` on, leave the rest.

    Args:
        weight: dense, with the present values of weights that are cut.
        mask: before the update.
        lower: a.
        upper: b.

    Returns:
        A new bool tensor, True where a weight is kept.
    """
    magnitude = weight.double().abs()
    return (magnitude >= upper) | (mask & (magnitude >= lower))


def rates_for_density(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    scales: Mapping[str, Scale],
    density: float,
    rate: PerLayer = 1.0,
) -> dict[str, float]:
    """The rates c with which an update of the masks keeps a wanted share of all weights.

    A weight stays until the rates' common factor passes the value at which its threshold (a if it is kept now, b if it
    is cut) reaches |w|. So one selection among these values answers the question exactly.

    Args:
        weights: dense, by layer name.
        masks: before the update.
        scales: of the layers.
        density: share of weights to keep, 0 to 1; exact up to ties.
        rate: what the layers' rates are proportional to.

    Returns:
        A rate for every layer.

    Raises:
        ValueError: a rate is not above 0, or a layer's weights have all the same magnitude.
    """
    rates = per_layer(rate, list(weights), "rate")
    limits = []
    for name, weight in weights.items():
        scale = scales[name]
        if not rates[name] > 0:
            raise ValueError(
                f"rate {rates[name]!r} of layer {name!r} is not accepted: with a density, a number above 0"
            )
        if not scale.deviation:
            raise ValueError(f"layer {name!r}: all weights have the magnitude {scale.mean}: no rate selects among them")
        magnitude = weight.double().abs()
        reached = torch.where(masks[name], magnitude / LOWER, magnitude / UPPER)
        limits.append(((reached - scale.mean) / (rates[name] * scale.deviation)).flatten())
    factor = selecting_value(torch.cat(limits), density)
    return {name: factor * value for name, value in rates.items()}


def updated_masks(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    scales: Mapping[str, Scale],
    settings: SurgerySettings,
) -> dict[str, Tensor]:
    """One update of all masks.

    Args:
        weights: dense, by layer name.
        masks: before the update.
        scales: of the layers.
        settings: their rates, or the density that gives the rates.

    Returns:
        New masks.
    """
    if settings.density is None:
        rates = per_layer(settings.rate, list(weights), "rate")
    else:
        rates = rates_for_density(weights, masks, scales, settings.density, settings.rate)
    return {
        name: operate(weight, masks[name], *scales[name].thresholds(rates[name])) for name, weight in weights.items()
    }


def first_masks(network: nn.Module, settings: SurgerySettings) -> dict[str, Tensor]:
    """The masks that surgery starts with, from the dense weights: the method without its training.

    Returns:
        Bool tensors by layer name, True where a weight is kept.
    """
    weights = layer_weights(network)
    ones = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return updated_masks(weights, ones, {name: Scale.of(weight) for name, weight in weights.items()}, settings)


class NetworkSurgery(pl.Callback):
    """Cuts and splices the connections of a network while it trains.

    After every minibatch the modules hold masked weights, so that whatever measures or stores the network sees the
    pruned one. Mean and deviation of |w| are those at the start of training, as in the authors' implementation.

    Args:
        settings: thresholds and times of the updates.
        seed: of the draws that decide whether the masks are updated.

    Attributes:
        masks: by layer name, True where a weight is kept.
        spliced: weights that came back, counted at every update.
    """

    def __init__(self, settings: SurgerySettings, seed: int) -> None:
        self._settings = settings
        self._draws = torch.Generator().manual_seed(seed)
        self._weights: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        self._scales: dict[str, Scale] = {}
        self.masks: dict[str, Tensor] = {}
        self.spliced = 0

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:  # type: ignore[override]
        """Takes the dense weights, now that they are on their device.

        Raises:
            ValueError: the trainer accumulates gradients: a minibatch without a step would lose the dense weights.
        """
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} is not accepted: surgery needs 1"
            )
        self._weights = layer_weights(module.network)
        self._dense = {name: weight.clone() for name, weight in self._weights.items()}
        self._scales = {name: Scale.of(weight) for name, weight in self._weights.items()}
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Updates the masks, when the draw says so."""
        if float(torch.rand((), generator=self._draws)) >= self._settings.probability(trainer.global_step):
            return
        masks = updated_masks(self._dense, self.masks, self._scales, self._settings)
        self.spliced += sum(int((mask & ~self.masks[name]).sum()) for name, mask in masks.items())
        self.masks = masks
        self._apply()

    def on_before_optimizer_step(self, *_: object) -> None:
        """The gradient is that of the masked weights; the step is taken from the dense ones."""
        for name, weight in self._weights.items():
            weight.copy_(self._dense[name])

    def on_train_batch_end(self, *_: object) -> None:
        """Keeps the dense weights and puts the masked ones in their place."""
        for name, weight in self._weights.items():
            self._dense[name].copy_(weight)
        self._apply()

    def _apply(self) -> None:
        for name, weight in self._weights.items():
            torch.mul(self._dense[name], self.masks[name], out=weight)


def surgery(
    network: nn.Module,
    train: Split,
    measured: Split,
    recipe: Recipe,
    settings: SurgerySettings,
    *,
    seed: int,
    device: str = "auto",
    measure_every: int,
) -> Retrained:
    """Dynamic network surgery from a trained network; after ``settings.stop`` the masks are fixed.

    Args:
        network: dense; comes back on the CPU, trained and with its cut weights exactly zero.
        train: the images to learn from.
        measured: the images to measure the curve on; they influence nothing.
        recipe: of the whole training.
        settings: thresholds and times of the updates.
        seed: of the order of the images and of the updates.
        device: ``auto``, ``cpu`` or ``cuda``.
        measure_every: minibatches between two points of the curve.

    Returns:
        The network, its masks and the history, as one round. The error after pruning is that of the first masks
        on the dense weights.

    Raises:
        ValueError: the recipe ends before the masks are fixed.
    """
    if settings.stop > recipe.iterations:
        raise ValueError(f"stop={settings.stop} is not accepted: training ends after {recipe.iterations} iterations")
    cut, masks = copy.deepcopy(network), first_masks(network, settings)
    for name, weight in layer_weights(cut).items():
        weight.mul_(masks[name])
    after_pruning = error_percent(cut, measured)
    operation = NetworkSurgery(settings, seed)
    result = fit(
        network,
        train,
        measured,
        recipe,
        seed=seed,
        device=device,
        measure_every=measure_every,
        callbacks=[operation],
    )
    masks = {name: mask.cpu() for name, mask in operation.masks.items()}
    done = {
        "round": 1,
        "density": sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values()),
        "error_after_pruning_percent": after_pruning,
        "error_after_retraining_percent": result.error_percent,
        "iterations": recipe.iterations,
    }
    return Retrained(network, masks, [{"round": 1, **point} for point in result.points], [done])
