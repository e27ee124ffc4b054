"""Checks a configuration or a stage's part of one: types, ranges and names by pydantic, then what goes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from math import isfinite
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from lobs.registry import METHODS
from lobs_paper.config.choices import DATASETS, THRESHOLDS
from lobs_paper.config.errors import ConfigError, unknown_key
from lobs_paper.config.requested import BUDGETS
from lobs_paper.config.schema import Config, Retrain, Section, Surgery, Tuned


def validate(config: Mapping[str, Any]) -> None:
    """Check a configuration, or the part of one that a stage got: known keys, ranges, names.

    Raises:
        ConfigError: the first mistake found.
    """
    _check_values(Config, config)
    if "model" in config and not isinstance(config["model"].get("_target_"), str):
        raise ConfigError("model._target_ is missing: the class of the network, such as package.module.Class")
    weights = config.get("model", {}).get("weights")
    if not (weights is None or (isinstance(weights, str) and weights)):
        raise ConfigError(f"model.weights={weights!r} is not accepted: the name of weights, a file, or null")
    output = config.get("model", {}).get("output")
    if not (output is None or (isinstance(output, (str, int)) and not isinstance(output, bool) and output != "")):
        raise ConfigError(
            f"model.output={output!r} is not accepted: a key or attribute of the network's outputs, an index, "
            "package.function of them, or null"
        )
    check_tuned(config.get("methods", {}))
    data, method = config.get("data", {}), config.get("method", {})
    if "_target_" in data and data["_target_"] is None and data["name"] not in DATASETS:
        known = f"one of {', '.join(DATASETS)}, or a name of your own with data._target_"
        raise ConfigError(f"data.name={data['name']!r} is not accepted: {known}")
    if "density" in config:
        _check_budget(config)
    if "solver" in method:
        _check_method(method)
    if "surgery" in method:
        _check_surgery(method)
    _check_values(Retrain, method.get("retrain", {}), "method.retrain.")


# Types of options as solvers declare them, and what a configuration has for them.
_KINDS: dict[str, Any] = {"float": (int, float), "int": int, "str": str, "bool": bool, "None": type(None)}


def check_tuned(methods: Mapping[str, Any]) -> None:
    """Check what an experiment sets for single methods; the values themselves are checked once they are in `method`.

    Raises:
        ConfigError: a key that no method has, or a density out of range.
    """
    for name, settings in methods.items():
        _check_values(Tuned, settings, f"methods.{name}.")


def check_key(key: str, value: object) -> None:
    """Check that a dotted key exists in the schema, whatever its value.

    Raises:
        ConfigError: it does not.
    """
    node: Any = Config
    parts = key.split(".")
    for index, part in enumerate(parts):
        if not _is_section(node):
            return
        if part not in _hints(node):
            raise ConfigError(unknown_key(".".join(parts[: index + 1]), value, _names(node)))
        node = _hints(node)[part]


def accepted(key: str | None) -> str | None:
    """What a key accepts, in words; None for a key that is not in the schema."""
    node: Any = Config
    for part in (key or "").split("."):
        node = _hints(node).get(part) if _is_section(node) else None
    return _words(node)


def _check_values(schema: Any, part: Any, prefix: str = "") -> None:
    """Check the keys that are there against a class of the schema, whose other keys may be missing."""
    try:
        _adapter(schema).validate_python(part)
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_context=False):
            if mistake["type"] != "missing":
                raise ConfigError(_line(schema, part, mistake["loc"], prefix)) from None


def _line(schema: Any, part: Any, place: tuple[int | str, ...], prefix: str) -> str:
    """The message for a place in a part: the key of the schema that it belongs to, its value, what is accepted."""
    node, value, key = schema, part, prefix.removesuffix(".")
    for step in place:
        if not _is_section(node):
            break  # within a list or a mapping, which is shown as a whole
        key, value = f"{key}.{step}" if key else str(step), value[step]
        if step not in _hints(node):
            return unknown_key(key, value, _names(node))
        node = _hints(node)[step]
    return f"{key}={value!r} is not accepted: {_words(node)}"


def _words(hint: Any) -> str | None:
    """What a type of the schema accepts, as its annotation says."""
    if _is_section(hint):
        return f"a mapping of {', '.join(_names(hint))}"
    if get_origin(hint) is Annotated:
        return next((words for note in hint.__metadata__[::-1] if (words := getattr(note, "description", None))), None)
    if type(None) in get_args(hint):
        return f"{_words(next(arm for arm in get_args(hint) if arm is not type(None)))}, or null"
    return None


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


@cache
def _adapter(schema: Any) -> TypeAdapter:
    return TypeAdapter(schema)


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _names(schema: Any) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(schema))


def _check_surgery(method: Mapping[str, Any]) -> None:
    settings = method["surgery"]
    if (method["allocation"] == "dns") != bool(settings):
        raise ConfigError(
            f"method.surgery={settings} with method.allocation={method['allocation']} is not accepted: "
            f"dynamic network surgery needs both, method.allocation=dns and method.surgery.stop"
        )
    if settings and method["rounds"]:
        raise ConfigError(f"method.rounds={method['rounds']} with method.allocation=dns is not accepted: null")
    _check_values(Surgery, settings, "method.surgery.")
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
    kinds = dict(zip(METHODS[solver].options, METHODS[solver].kinds, strict=True))
    for option, value in method["options"].items():
        if option not in kinds:
            raise ConfigError(unknown_key(f"method.options.{option}", value, kinds, f" by method.solver={solver}"))
        known = {kind: _KINDS[kind] for kind in kinds[option].split(" | ") if kind in _KINDS}
        # In Python a truth value is a whole number, and a number may be infinite or none at all.
        fits = any(
            isinstance(value, kind) and isinstance(value, bool) == (name == "bool") for name, kind in known.items()
        )
        if not fits or (isinstance(value, float) and not isfinite(value)):
            raise ConfigError(
                f"method.options.{option}={value!r} is not accepted by method.solver={solver}: {' or '.join(known)}"
            )
