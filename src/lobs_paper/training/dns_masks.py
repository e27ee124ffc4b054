"""The masks of DNS, dynamic network surgery (Guo et al. 2016): two thresholds per layer, cutting and splicing.

Every layer k has a mask T_k and two thresholds a_k < b_k. An update of the masks cuts weights with |w| < a_k, splices
those with |w| >= b_k back and leaves the rest as they are. The training around it is `lobs_paper.training.dns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lobs_paper.training.lwc import PerLayer, layer_weights, per_layer, selecting_value

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
