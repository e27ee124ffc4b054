"""What a configuration asks for: its budget, and what pruning to it needs. Pure Python, for config and stages alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobs.registry import MEASURING_ALLOCATIONS, METHODS

# Exactly one of them is given.
BUDGETS = ("density", "tolerance", "flops", "size")


def first_density(config: Mapping[str, Any]) -> float | None:
    """What the prune stage prunes to: the first of the rounds, where there are rounds."""
    rounds = config["method"]["rounds"]
    return rounds[0] if rounds else config["density"]


def requested(config: Mapping[str, Any]) -> dict[str, Any]:
    """The budget that the prune stage prunes to, by its name."""
    budgets = {**{key: config[key] for key in BUDGETS}, "density": first_density(config)}
    return {key: value for key, value in budgets.items() if value is not None}


def runs_network(method: Mapping[str, Any]) -> bool:
    """Whether pruning by this method runs the network on calibration images, beyond their statistics."""
    again = method["sequential"] or method["stages"] != 1 or method["correct"] != "none"
    return again or compares(method) or method["allocation"] in MEASURING_ALLOCATIONS


def compares(method: Mapping[str, Any]) -> bool:
    """Whether the method compares networks, by calibration images that neither statistics nor weights have seen."""
    return method["allocation"] == "global" or bool(method["refit"])


def excluded(config: Mapping[str, Any]) -> list[str]:
    """The layers that stay dense, by name or pattern: the experiment's and the method's own."""
    return [*config["exclude"], *config["method"]["exclude"]]


def needs_curvature(method: Mapping[str, Any]) -> bool:
    """Whether the method scores weights by the training loss's curvature, which stage prune then collects."""
    return "loss_curvature" in METHODS[method["solver"]].needs
