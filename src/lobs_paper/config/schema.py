"""The configuration: its schema, and which stage reads which part of it.

Nothing here imports torch, so that a mistake is reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from lobs.registry import METHODS
from lobs_paper.config.choices import THRESHOLDS
from lobs_paper.config.requested import BUDGETS, needs_curvature, runs_network
from lobs_paper.config.rules import AT_LEAST_ZERO, POSITIVE, RULES, SHARE


class ConfigError(ValueError):
    """A mistake in the configuration: one line that names the key, the value and what is accepted."""


@dataclass
class Data:
    """Group `data`."""

    name: str
    validation: int = 0
    root: str | None = None
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    resize: int | None = None
    size: int | None = None
    crop_scale: list[float] = field(default_factory=lambda: [0.35, 1.0])


@dataclass
class Train:
    """Group `train`: the recipe of the dense network."""

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    batch_size: int
    epochs: int
    augment: str = "none"


@dataclass
class Retrain:
    """Group `retrain`: the recipe of the pruned network; `method.retrain` overrides parts of it."""

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    batch_size: int
    iterations: int
    measure_every: int
    augment: str = "none"


@dataclass
class Collect:
    """Key `collect`: the calibration pass."""

    batch_size: int
    images: int | None
    repeated_images: int | None
    loss: str | None
    samples: int
    views: int = 1


@dataclass
class Method:
    """Group `method`: a solver, its options, and how it is applied.

    `relative` and `surgery` are read where thresholds decide between the layers (`THRESHOLDS`).
    """

    name: str
    solver: str
    options: dict[str, Any]
    allocation: str
    rounds: list[float] | None
    retrain: dict[str, Any]
    limits: dict[str, Any] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    sequential: bool = False
    correct: str = "none"
    relative: Any = 1.0
    surgery: dict[str, Any] = field(default_factory=dict)


@dataclass
class Paths:
    """Key `paths`: folders, relative to the working directory."""

    data: str
    runs: str
    further_runs: list[str]
    reports: str
    mlflow: str
    output: str | None


@dataclass
class Track:
    """Key `track`: the MLflow view."""

    models: bool


@dataclass
class Config:
    """The whole configuration."""

    name: str
    seed: int
    density: float | None
    tolerance: float | None
    flops: float | None
    size: int | None
    exclude: list[str]
    methods: dict[str, Any]
    curve: list[float] | None
    device: str
    devices: int
    threads: int
    memory: float | None
    model: dict[str, Any]
    data: Data
    train: Train
    collect: Collect
    method: Method
    retrain: Retrain
    paths: Paths
    track: Track


_COMPUTE = ("name", "seed", "device", "threads", "paths.runs", "paths.output")
# How images are read and made inputs; only `fetch` knows where they come from (`data.root`).
_DATA = ("data.name", "data.validation", "data.mean", "data.std", "data.resize", "data.size", "data.crop_scale")
_NETWORK = (*_COMPUTE, "model", *_DATA, "paths.data")
_BUDGET = (*BUDGETS, "method.name", "method.rounds")
_THRESHOLDS = ("method.allocation", "method.relative")
_SOLVER = (
    *("method.solver", "method.options", "method.sequential", "method.correct", "method.limits", "method.exclude"),
    *_THRESHOLDS,
)

_CALIBRATION = ("collect.images", "collect.views")
_FIRST_PASS = (*_CALIBRATION, "collect.batch_size", "collect.samples")

# What each stage reads; `resolve` writes exactly this, so a stage runs again when one of its own values changes.
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "fetch": ("data.name", "data.root", "paths.data"),
    "train": (*_NETWORK, "devices", "train"),
    "collect": (*_NETWORK, "devices", "memory", *_FIRST_PASS),
    "prune": (*_NETWORK, "memory", *_BUDGET, *_SOLVER, "exclude", "curve"),
    "retrain": (*_NETWORK, "devices", *_BUDGET, *_THRESHOLDS, "method.surgery", "retrain"),
    "evaluate": (*_NETWORK, *_BUDGET, *_CALIBRATION),
    "report": ("paths.runs", "paths.further_runs", "paths.reports", "paths.mlflow", "track"),
    "track": ("paths.runs", "paths.further_runs", "paths.reports", "paths.mlflow", "track"),
}
# Mappings whose keys a command line may add to; what may stand in them is checked by `validate`.
OPEN_KEYS = (
    "model.weights",
    "method.limits.",
    "method.options.",
    "method.retrain.",
    "method.relative.",
    "method.surgery.",
    "methods.",
)
# What an experiment may set for a single method under `methods.<name>`.
TUNED_KEYS = (
    *("density", "options", "allocation", "limits", "exclude", "sequential", "correct", "rounds", "retrain"),
    *("relative", "surgery"),
)
SURGERY_KEYS = ("gamma", "power", "stop")


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


def validate(config: Mapping[str, Any]) -> None:
    """Check a configuration, or the part of one that a stage got: known keys, ranges, names.

    Raises:
        ConfigError: the first mistake found.
    """
    for key, value in _leaves(config, Config):
        check = RULES.get(key)
        if check is not None and not check[0](value):
            raise ConfigError(f"{key}={value!r} is not accepted: {check[1]}")
    if "model" in config and not isinstance(config["model"].get("_target_"), str):
        raise ConfigError("model._target_ is missing: the class of the network, such as package.module.Class")
    weights = config.get("model", {}).get("weights")
    if not (weights is None or (isinstance(weights, str) and weights)):
        raise ConfigError(f"model.weights={weights!r} is not accepted: the name of weights, a file, or null")
    check_tuned(config.get("methods", {}))
    if "density" in config:
        _check_budget(config)
    if "solver" in config.get("method", {}):
        _check_method(config["method"])
    if "surgery" in config.get("method", {}):
        _check_surgery(config["method"])
    for key, value in config.get("method", {}).get("retrain", {}).items():
        if key not in _names(Retrain):
            raise ConfigError(unknown_key(f"method.retrain.{key}", value, _names(Retrain)))
        check = RULES[f"retrain.{key}"]
        if not check[0](value):
            raise ConfigError(f"method.retrain.{key}={value!r} is not accepted: {check[1]}")


def check_tuned(methods: Mapping[str, Any]) -> None:
    """Check what an experiment sets for single methods; the values themselves are checked once they are in `method`.

    Raises:
        ConfigError: a key that no method has, or a density out of range.
    """
    for name, settings in methods.items():
        if not isinstance(settings, Mapping):
            raise ConfigError(f"methods.{name}={settings!r} is not accepted: a mapping of {', '.join(TUNED_KEYS)}")
        for key, value in settings.items():
            if key not in TUNED_KEYS:
                raise ConfigError(unknown_key(f"methods.{name}.{key}", value, TUNED_KEYS))
        if not SHARE[0](settings.get("density", 1.0)):
            raise ConfigError(f"methods.{name}.density={settings['density']!r} is not accepted: {SHARE[1]}")


def _check_surgery(method: Mapping[str, Any]) -> None:
    settings = method["surgery"]
    if (method["allocation"] == "surgery") != bool(settings):
        raise ConfigError(
            f"method.surgery={settings} with method.allocation={method['allocation']} is not accepted: "
            f"dynamic network surgery needs both, method.allocation=surgery and method.surgery.stop"
        )
    if settings and method["rounds"]:
        raise ConfigError(f"method.rounds={method['rounds']} with method.allocation=surgery is not accepted: null")
    for key, value in settings.items():
        if key not in SURGERY_KEYS:
            raise ConfigError(unknown_key(f"method.surgery.{key}", value, SURGERY_KEYS))
        check, rule = POSITIVE if key == "stop" else AT_LEAST_ZERO
        if not check(value):
            raise ConfigError(f"method.surgery.{key}={value!r} is not accepted: {rule}")
    if settings and "stop" not in settings:
        raise ConfigError("method.surgery.stop is missing: the iteration from which the masks stay as they are")


def _check_budget(config: Mapping[str, Any]) -> None:
    density, rounds = config["density"], config["method"]["rounds"]
    allocation = config["method"].get("allocation")
    given = " and ".join(f"{key}={config[key]}" for key in BUDGETS if config[key] is not None) or "no budget"
    if sum(config[key] is not None for key in BUDGETS) != 1:
        raise ConfigError(f"{given}: give exactly one of {', '.join(BUDGETS)}, and null for the others")
    if density is None and allocation in THRESHOLDS:
        raise ConfigError(f"method.allocation={allocation} needs a density, got {given}")
    if not rounds:
        return
    if density is None:
        raise ConfigError(f"method.rounds={rounds} needs a density, got {given}")
    if any(after >= before for before, after in zip([1.0, *rounds], [*rounds, density], strict=True)):
        raise ConfigError(
            f"method.rounds={rounds} with density={density} is not accepted: densities must fall from round to round"
        )


def _check_method(method: Mapping[str, Any]) -> None:
    solver = method["solver"]
    if method["allocation"] in THRESHOLDS and solver != "magnitude":
        raise ConfigError(
            f"method.solver={solver} with method.allocation={method['allocation']} is not accepted: thresholds for "
            f"weights are those of magnitude"
        )
    for option, value in method["options"].items():
        options = METHODS[solver].options
        if option not in options:
            raise ConfigError(unknown_key(f"method.options.{option}", value, options, f" by method.solver={solver}"))


def unknown_key(key: str, value: object, names: Iterable[str], whose: str = "") -> str:
    """The message for a key that does not exist, with the closest one that does."""
    *parents, leaf = key.split(".")
    names = list(names)
    close = difflib.get_close_matches(leaf, names, n=1)
    hint = f"did you mean {'.'.join([*parents, close[0]])}? " if close else ""
    return f"unknown key {key}={value!r}: {hint}accepted{whose}: {', '.join(names) or 'none'}"


def check_key(key: str, value: object) -> None:
    """Check that a dotted key exists in the schema, whatever its value.

    Raises:
        ConfigError: it does not.
    """
    node: Any = Config
    parts = key.split(".")
    for index, part in enumerate(parts):
        if not is_dataclass(node):
            return
        hints = get_type_hints(node)
        if part not in hints:
            raise ConfigError(unknown_key(".".join(parts[: index + 1]), value, _names(node)))
        node = hints[part]


def accepted(key: str | None) -> str | None:
    """What a key accepts, in words; None for a key without a rule."""
    return RULES[key][1] if key in RULES else None


def _names(schema: Any) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(schema))


def _leaves(part: Mapping[str, Any], schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a configuration, checked against the dataclasses."""
    hints = get_type_hints(schema)
    for key, value in part.items():
        if key not in hints:
            raise ConfigError(unknown_key(prefix + str(key), value, _names(schema)))
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{prefix}{key}={value!r} is not accepted: a mapping of {', '.join(_names(hints[key]))}"
                )
            yield from _leaves(value, hints[key], f"{prefix}{key}.")
        else:
            yield prefix + key, value
