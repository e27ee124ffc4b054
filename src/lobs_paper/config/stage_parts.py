"""Which stage reads which part of the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lobs_paper.config.errors import ConfigError
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
_PRUNE = (*_NETWORK, "memory", *_BUDGET, *_SOLVER, "exclude", "density_grid")

# What each stage reads; `resolve` writes exactly this, so a stage runs again when one of its own values changes.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "fetch": ("data.name", "data._target_", "data.root", "folders.data"),
    "train": (*_NETWORK, "devices", "train"),
    "collect": (*_NETWORK, "devices", "memory", *_FIRST_PASS),
    "prune": _PRUNE,
    "factorise": (*_PRUNE, "part"),
    "retrain": (*_NETWORK, "devices", *_BUDGET, *_THRESHOLDS, "method.surgery", "retrain"),
    "evaluate": (*_NETWORK, *_BUDGET, *_CALIBRATION),
    "report": ("folders.runs", "folders.further_runs", "folders.reports", "folders.mlflow", "track"),
    "track": ("folders.runs", "folders.further_runs", "folders.reports", "folders.mlflow", "track"),
}


def check_part(stage: str, part: Mapping[str, Any]) -> None:
    """Check that a stage finds all that it reads in a file that `lobs resolve` is said to have written.

    Raises:
        ConfigError: a key is missing, or the stage has no such file.
    """
    resolved = [name for name in STAGE_KEYS if name != "factorise"]  # a part is asked for by hand
    if stage not in resolved:
        raise ConfigError(f"lobs {stage} takes no --resolved: accepted by {', '.join(resolved)}")
    for key in STAGE_KEYS[stage]:
        _require(key, part)
    for key in _stage_keys(stage, part):
        _require(key, part)


def _require(key: str, part: Mapping[str, Any]) -> None:
    node: Any = part
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise ConfigError(f"key {key} is missing: run `lobs resolve` again")
        node = node[name]


def _stage_keys(stage: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a stage reads with these values."""
    keys, method = STAGE_KEYS[stage], config.get("method", {})
    if stage == "retrain" and method["rounds"]:
        keys += (*_SOLVER, "collect", "exclude")  # it prunes and collects again
    if stage in ("prune", "factorise") and (runs_network(method) or needs_curvature(method)):
        keys += ("collect",)
    return keys


def is_read(key: str, stages: Iterable[str], config: Mapping[str, Any]) -> bool:
    """Whether one of some stages reads what an override sets.

    Args:
        key: of the override; a group's name stands for all its keys.
        stages: names of them.
        config: a whole, validated configuration.

    Returns:
        Whether a value that a stage reads comes from there.
    """
    head, _, rest = key.partition(".")
    if head == "methods" and rest:  # of one method, or of all: the settings that are put into group `method`
        name, _, leaf = rest.partition(".")
        if name not in ("default", config["method"]["name"]):
            return False
        key = leaf if leaf == "density" or not leaf else f"method.{leaf}"
    read = [entry for stage in stages for entry in _stage_keys(stage, config)]
    if "retrain" in read:
        read.append("method.retrain")
    return key in ("", "experiment") or any(
        f"{entry}.".startswith(f"{key}.") or key.startswith(f"{entry}.") for entry in read
    )


def stage_config(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The part of a configuration that a stage reads.

    Args:
        config: a whole, validated configuration.
        stage: a key of `STAGE_KEYS`.

    Returns:
        A new nested dict; for `retrain` the method's own settings are merged into the recipe.
    """
    keys = _stage_keys(stage, config)
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
