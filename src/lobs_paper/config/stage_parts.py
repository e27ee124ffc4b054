"""Which stage reads which part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobs_paper.config.requested import BUDGETS, needs_curvature, runs_network

_COMPUTE = ("name", "seed", "device", "threads", "folders.runs", "folders.output")
# How images are read and made inputs; only `fetch` knows where they come from (`data.root`).
_DATA = ("data.name", "data.holdout", "data.mean", "data.std", "data.resize", "data.size", "data.crop_scale")
_NETWORK = (*_COMPUTE, "model", *_DATA, "folders.data")
_BUDGET = (*BUDGETS, "method.name", "method.rounds")
_THRESHOLDS = ("method.allocation", "method.threshold_scale")
_SOLVER = (
    *(
        "method.solver",
        "method.options",
        "method.sequential",
        "method.stages",
        "method.correct",
        "method.refit",
        "method.images",
        "method.limits",
        "method.exclude",
    ),
    *_THRESHOLDS,
)

_CALIBRATION = ("collect.images", "collect.augmented_copies")
_FIRST_PASS = (*_CALIBRATION, "collect.batch_size", "collect.kept_samples")

# What each stage reads; `resolve` writes exactly this, so a stage runs again when one of its own values changes.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "fetch": ("data.name", "data._target_", "data.root", "folders.data"),
    "train": (*_NETWORK, "devices", "train"),
    "collect": (*_NETWORK, "devices", "memory", *_FIRST_PASS),
    "prune": (*_NETWORK, "memory", *_BUDGET, *_SOLVER, "exclude", "density_grid"),
    "retrain": (*_NETWORK, "devices", *_BUDGET, *_THRESHOLDS, "method.surgery", "retrain"),
    "evaluate": (*_NETWORK, *_BUDGET, *_CALIBRATION),
    "report": ("folders.runs", "folders.further_runs", "folders.reports", "folders.mlflow", "track"),
    "track": ("folders.runs", "folders.further_runs", "folders.reports", "folders.mlflow", "track"),
}


def stage_config(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The part of a configuration that a stage reads.

    Args:
        config: a whole, validated configuration.
        stage: a key of `STAGE_KEYS`.

    Returns:
        A new nested dict; for `retrain` the method's own settings are merged into the recipe.
    """
    keys = STAGE_KEYS[stage]
    method = config.get("method", {})
    if stage == "retrain" and method["rounds"]:
        keys += (*_SOLVER, "collect", "exclude")  # it prunes and collects again
    if stage == "prune" and (runs_network(method) or needs_curvature(method)):
        keys += ("collect",)
    part: dict[str, Any] = {}
    for key in keys:
        *parents, leaf = key.split(".")
        source, target = config, part
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        target[leaf] = source[leaf]
    if stage == "retrain":
        part["retrain"] = {**config["retrain"], **config["method"]["retrain"]}
    return part
