"""LWC, learning both weights and connections (Han et al. 2015): thresholds by layer, and dropout that shrinks.

A layer's threshold is a quality parameter times the standard deviation of the layer's weights; what lies below it is
removed, the rest is retrained, and so on with a larger quality parameter. Retraining is done by
`lobs_paper.training.retraining.retrain`, which takes a `Connections` as its ``prune``; nothing here trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lobs.layers.network import prunable_layers

# One value for all layers, or values by layer name or shell pattern ("conv*").
PerLayer: TypeAlias = float | Mapping[str, float]
Dropout: TypeAlias = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network's Linear and Conv2d layers by layer name, detached but not copied."""
    return {name: module.weight.detach() for name, module in prunable_layers(network).items()}


def per_layer(values: PerLayer, names: Sequence[str], what: str) -> dict[str, float]:
    """Spell out a setting for every layer.

    Args:
        values: one number, or numbers by layer name or shell pattern; the first pattern that fits a layer counts.
        names: of the layers.
        what: the setting's name, for messages.

    Returns:
        A number for every name.

    Raises:
        ValueError: a layer that no pattern fits, or a pattern that fits no layer.
    """
    if not isinstance(values, Mapping):
        return dict.fromkeys(names, float(values))
    for pattern in values:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{what}: no layer fits {pattern!r}; the network has {', '.join(names)}")
    found = {}
    for name in names:
        fitting = [value for pattern, value in values.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"{what}: no value for layer {name!r}; there are those of {', '.join(values)}")
        found[name] = float(fitting[0])
    return found


def deviation(weight: Tensor) -> float:
    """The standard deviation of a layer's weights, zeros left out: a removed weight is no connection any more.

    Returns:
        The population's standard deviation, in float64; 0.0 without any weight.
    """
    kept = weight[weight != 0].double()
    return float(kept.std(correction=0)) if len(kept) else 0.0


def thresholds(weights: Mapping[str, Tensor], quality: PerLayer) -> dict[str, float]:
    """The threshold of every layer, quality parameter times `deviation`.

    Args:
        weights: by layer name.
        quality: the quality parameter, 0 or more; one, or by layer.

    Returns:
        Thresholds for |w|, by layer name.
    """
    qualities = per_layer(quality, list(weights), "quality")
    return {name: qualities[name] * deviation(weight) for name, weight in weights.items()}


def threshold_masks(weights: Mapping[str, Tensor], quality: PerLayer) -> dict[str, Tensor]:
    """Which weights stay: those with |w| above their layer's threshold.

    Args:
        weights: by layer name.
        quality: the quality parameter, 0 or more; one, or by layer.

    Returns:
        Bool tensors in the weights' shapes, True where a weight stays.
    """
    limits = thresholds(weights, quality)
    return {name: weight.double().abs() > limits[name] for name, weight in weights.items()}


def quality_for_density(weights: Mapping[str, Tensor], density: float, relative: PerLayer = 1.0) -> dict[str, float]:
    """The quality parameters that keep a wanted share of all weights.

    Args:
        weights: by layer name.
        density: share of all weights to keep, 0 to 1; never exceeded, and short of it only by ties and by weights
            that are zero already.
        relative: what the layers' quality parameters are proportional to: 1.0 for one shared parameter, less for
            a layer that is sensitive to pruning.

    Returns:
        The quality parameter of every layer, for `threshold_masks`.

    Raises:
        ValueError: the density is outside 0..1, or a relative quality is not above 0.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density={density!r} is not accepted: the share of weights kept, a number from 0 to 1")
    shares = per_layer(relative, list(weights), "relative")
    for name, share in shares.items():
        if not share > 0:
            raise ValueError(f"relative quality {share!r} of layer {name!r} is not accepted: a number above 0")
    # A weight stays until the common factor reaches its own ratio; a layer of equal weights has the threshold 0.
    ratios = [
        (weight.double().abs() / (shares[name] * deviation(weight))).nan_to_num(nan=0.0, posinf=math.inf).flatten()
        for name, weight in weights.items()
    ]
    factor = max(0.0, selecting_value(torch.cat(ratios), density))
    if math.isinf(factor):
        raise ValueError(f"density={density!r} is out of reach: a layer's weights have all the same magnitude")
    return {name: factor * share for name, share in shares.items()}


def qualities_for_densities(weights: Mapping[str, Tensor], densities: PerLayer) -> dict[str, float]:
    """The quality parameters that leave each layer its own density.

    Args:
        weights: by layer name.
        densities: share of weights to keep, by layer.

    Returns:
        The quality parameter of every layer, for `threshold_masks`.
    """
    wanted = per_layer(densities, list(weights), "densities")
    found: dict[str, float] = {}
    for name, weight in weights.items():
        found.update(quality_for_density({name: weight}, wanted[name]))
    return found


def selecting_value(values: Tensor, share: float) -> float:
    """A number that a wanted share of some values exceeds, rounded down to whole values.

    Args:
        values: one-dimensional.
        share: 0 to 1.

    Returns:
        Halfway between the last value above and the first below, so that rounding moves neither; of equal values
        there, none counts as above.
    """
    below = len(values) - int(share * len(values) + 1e-9)
    if below == 0:
        return math.nextafter(float(values.min()), -math.inf)
    split = np.partition(values.detach().cpu().numpy(), below - 1)  # several times as fast as kthvalue
    low, high = float(split[below - 1]), float(split[below:].min(initial=math.inf))
    return (low + high) / 2 if low < high < math.inf else math.nextafter(low, math.inf)


def dropout_after_pruning(rate: float, before: int, after: int) -> float:
    """The dropout rate for retraining, D_r = D_o sqrt(C_ir / C_io): fewer connections need less dropout.

    Args:
        rate: D_o, of the dense network's training.
        before: C_io, the layer's connections then.
        after: C_ir, its connections now.

    Returns:
        D_r.

    Raises:
        ValueError: the counts are not 0 <= after <= before with before above 0.
    """
    if not 0 <= after <= before or not before:
        raise ValueError(f"a layer of {before} connections cannot keep {after} of them")
    return rate * math.sqrt(after / before)


def dropouts(network: nn.Module) -> dict[str, tuple[Dropout, str]]:
    """The dropout modules, each with the layer that it feeds.

    That is the next Linear or Conv2d in the order of definition; a dropout with none behind it is left out.

    Returns:
        (module, layer name) by the dropout module's name.
    """
    found: dict[str, tuple[Dropout, str]] = {}
    waiting: dict[str, Dropout] = {}
    layers = prunable_layers(network)
    for name, module in network.named_modules():
        if isinstance(module, Dropout):
            waiting[name] = module
        elif name in layers:
            found.update({before: (dropout, name) for before, dropout in waiting.items()})
            waiting = {}
    return found


class Connections:
    """Prunes a network by thresholds and lowers its dropout; a ``prune`` for `retrain`.

    Args:
        network: before any pruning: its dropout rates are the D_o of `dropout_after_pruning`.
        relative: what the layers' quality parameters are proportional to, as in `quality_for_density`.
    """

    def __init__(self, network: nn.Module, relative: PerLayer = 1.0) -> None:
        self._relative = relative
        self._rates = {name: dropout.p for name, (dropout, _) in dropouts(network).items()}

    def __call__(self, network: nn.Module, density: float) -> tuple[nn.Module, dict[str, Tensor]]:
        """Prune a network in place, with the quality parameters that give a density.

        Args:
            network: pruned before or not.
            density: share of weights to keep.

        Returns:
            The same network and its masks.
        """
        weights = layer_weights(network)
        masks = threshold_masks(weights, quality_for_density(weights, density, self._relative))
        for name, weight in weights.items():
            weight.mul_(masks[name])
        self.adjust_dropout(network, masks)
        return network, masks

    def adjust_dropout(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Set every dropout module's rate by the connections left in the layer that it feeds."""
        for name, (dropout, layer) in dropouts(network).items():
            mask = masks[layer]
            dropout.p = dropout_after_pruning(self._rates[name], mask.numel(), int(mask.sum()))
