"""What densities cost a network, from its layers' paths alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, solved
from lobs.calibration.statistics import layer_error
from lobs.layers.consumers import Consumer
from lobs.solvers.path import PruningPath
from lobs.solvers.recomputed import whole

# Looked at where none are named; those that a method cannot reach are left out.
DENSITIES = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.02, 0.015, 0.01)


@dataclass(frozen=True)
class CurvePoint:
    """What one density costs, all layers pruned from the dense network's inputs.

    Attributes:
        density: share of weights kept over all layers.
        relative_error: E over ||Z||_F^2 / n, the mean over the layers.
        layers: by layer its density and its relative error.
        distance: of the network's outputs from the dense network's (`OutputDistance`), where there are batches.
    """

    density: float
    relative_error: float
    layers: dict[str, tuple[float, float]]
    distance: float | None = None


def curve_point(
    paths: Mapping[str, PruningPath],
    decision: Decision,
    consumers: Mapping[str, Consumer],
    measure: OutputDistance | None,
) -> CurvePoint:
    """What one decision costs.

    Args:
        paths: of all layers.
        decision: how many weights each loses.
        consumers: of the layers' units, where whole units are removed; empty where weights are.
        measure: of the network's outputs; None: they are not looked at.

    Returns:
        The point.
    """
    layers, kept, counts, chosen = {}, 0, decision.counts, paths
    if not consumers:
        chosen = {name: decision.weighted(name, path) for name, path in paths.items()}
        counts = {name: path.at_least(counts[name]) for name, path in chosen.items()}
    pairs = solved(chosen, counts, consumers)
    for name, (weight, mask) in pairs.items():
        path = whole(paths[name])
        left = int((mask & (path.weight != 0))[:, : path.statistics.features].sum())
        kept += left
        power = layer_error(path.weight, path.statistics.second_moment)
        error = path.measured_error(weight)
        layers[name] = left / path.removable, error / power if power else 0.0
    distance = None
    if measure is not None:
        distance = measure.with_weights({name: pair[0] for name, pair in pairs.items()})
    density = kept / sum(path.removable for path in paths.values())
    return CurvePoint(density, sum(error for _, error in layers.values()) / len(layers), layers, distance)
