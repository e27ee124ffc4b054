"""What each key of the configuration accepts: a check of its value, and the same in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lobs.registry import ALLOCATIONS, CORRECTIONS, METHODS
from lobs_paper.config.choices import AUGMENTATIONS, DATASETS, DEVICES, LOSSES, OPTIMIZERS, SCHEDULES, THRESHOLDS

Rule: TypeAlias = tuple[Callable[[Any], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) != float("inf")


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _shares(value: Any) -> bool:
    return isinstance(value, list) and all(map(_share, value))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) and entry for entry in value)


def _relative(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else [value]
    return all(_number(entry) and entry > 0 for entry in values)


def _limits(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_shares(pair) and len(pair) == 2 for pair in value.values())


def _numbers(check: Callable[[float], bool], rule: str) -> Rule:
    return (lambda value: isinstance(value, list) and all(_number(entry) and check(entry) for entry in value)), rule


def _one_of(names: Mapping | tuple) -> Rule:
    return (lambda value: value in names), f"one of {', '.join(names)}"


def _or_null(check: Rule) -> Rule:
    return (lambda value: value is None or check[0](value)), f"{check[1]}, or null"


SHARE = (_share, "the share of weights kept, a number from 0 to 1")
POSITIVE = (_whole(1), "a whole number, 1 or more")
_NAME = (
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", value) is not None,
    "a name of letters, digits, '_', '-' and '.', since it becomes a folder",
)
AT_LEAST_ZERO = (lambda value: _number(value) and value >= 0, "a number, 0 or more")
_RECIPE = {
    "optimizer": _one_of(OPTIMIZERS),
    "learning_rate": (lambda value: _number(value) and value > 0, "a number above 0"),
    "momentum": (lambda value: _number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "weight_decay": AT_LEAST_ZERO,
    "schedule": _one_of(SCHEDULES),
    "batch_size": POSITIVE,
    "augment": _one_of(AUGMENTATIONS),
}
RULES: dict[str, Rule] = {
    "name": _NAME,
    "seed": (lambda value: _whole(0)(value) and value < 2**32, "a whole number from 0 to 4294967295"),
    "density": _or_null(SHARE),
    "tolerance": _or_null((AT_LEAST_ZERO[0], "the tolerable error per layer, a number, 0 or more")),
    "flops": _or_null((_share, "the share of multiply-adds kept, a number from 0 to 1")),
    "size": _or_null((_whole(0), "the bytes of the sparse file, a whole number")),
    "device": _one_of(DEVICES),
    "devices": POSITIVE,
    "threads": POSITIVE,
    "memory": _or_null((lambda value: _number(value) and value > 0, "a ceiling in GiB, a number above 0")),
    "data.name": _one_of(DATASETS),
    "data.root": _or_null((lambda value: isinstance(value, str), "a folder or an archive")),
    "data.mean": _numbers(lambda value: True, "a list of numbers: one per channel, one for all, or none"),
    "data.std": _numbers(lambda value: value > 0, "a list of numbers above 0: one per channel, one for all, or none"),
    "data.resize": _or_null(POSITIVE),
    "data.size": _or_null(POSITIVE),
    "data.crop_scale": (
        lambda value: _shares(value) and len(value) == 2 and 0 < value[0] <= value[1],
        "[least, most] share of a picture's area, above 0 up to 1",
    ),
    "data.validation": (_whole(0), "a whole number of training images, 0 or more"),
    "collect.batch_size": POSITIVE,
    "collect.images": _or_null(POSITIVE),
    "collect.repeated_images": _or_null(POSITIVE),
    "collect.loss": _or_null(_one_of(LOSSES)),
    "collect.samples": (_whole(0), "a whole number of input vectors per layer, 0 or more"),
    "collect.views": POSITIVE,
    "curve": _or_null((lambda value: _shares(value) and value != [], "a list of densities")),
    "exclude": (
        lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
        "a list of layer names or patterns",
    ),
    "method.name": _NAME,
    "method.solver": _one_of(METHODS),
    "method.allocation": _one_of({**ALLOCATIONS, **THRESHOLDS}),
    "method.limits": (_limits, "[least, most] density by layer name or pattern, such as {fc3: [0.05, 1.0]}"),
    "method.correct": _one_of(CORRECTIONS),
    "method.relative": (_relative, "a number above 0, or numbers by layer name or pattern"),
    "method.rounds": _or_null((_shares, "a list of densities")),
    **{f"train.{key}": check for key, check in _RECIPE.items()},
    "train.epochs": POSITIVE,
    **{f"retrain.{key}": check for key, check in _RECIPE.items()},
    "retrain.iterations": (_whole(0), "a whole number, 0 (measure only) or more"),
    "retrain.measure_every": POSITIVE,
    "paths.further_runs": (_texts, "a list of folders, [] for none"),
    "track.models": (lambda value: isinstance(value, bool), "true or false"),
}
