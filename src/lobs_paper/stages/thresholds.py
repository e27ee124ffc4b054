"""Densities of the layers where thresholds for |w| decide between them: LWC's and DNS's way (`THRESHOLDS`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lobs_paper.config.choices import THRESHOLDS
from lobs_paper.training.dns_masks import SurgerySettings, first_masks
from lobs_paper.training.lwc import layer_weights, quality_for_density, threshold_masks


def threshold_densities(network: nn.Module, method: Mapping[str, Any], density: float) -> dict[str, float] | None:
    """The share of weights that each layer keeps when its threshold is applied to a network as it stands.

    Args:
        network: trained, pruned before or not.
        method: group `method`.
        density: share of all weights to keep.

    Returns:
        Densities by layer name; None where the method shares the budget out by its paths.
    """
    if method["allocation"] not in THRESHOLDS:
        return None
    if method["allocation"] == "dns":
        masks = first_masks(network, SurgerySettings(stop=1, density=density, rate=method["threshold_scale"]))
    else:
        weights = layer_weights(network)
        masks = threshold_masks(weights, quality_for_density(weights, density, method["threshold_scale"]))
    return {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
