"""Composes conf/ with Hydra and turns every mistake in an override into one clear line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lobs_paper.config.checks import accepted, check_key, check_tuned, validate
from lobs_paper.config.errors import ConfigError, unknown_key
from lobs_paper.config.folder import ROOT_CONFIG, config_dir
from lobs_paper.config.requested import BUDGETS
from lobs_paper.config.schema import OPEN_KEYS, Config
from lobs_paper.config.stage_parts import STAGE_KEYS, is_read
from lobs_paper.config.yaml_files import read_yaml

HYDRA_VERSION_BASE = "1.3"

# Longest name of a sweep point's folder; file systems take 255 bytes.
LONGEST_FOLDER = 180

ConfigStore.instance().store(name="schema", node=Config)


def folder_name(overrides: str) -> str:
    """A point's overrides as a folder's name; a long one ends with a digest of what was cut off."""
    if len(overrides.encode()) <= LONGEST_FOLDER:
        return overrides
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:10]
    return overrides.encode()[: LONGEST_FOLDER - len(digest) - 1].decode(errors="ignore") + f"~{digest}"


def last_name(target: str) -> str:
    """The class or function at the end of a dotted path: what an experiment with somebody's own network is called."""
    return str(target).rpartition(".")[2]


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("last_name", last_name, replace=True)


def load(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the configuration, resolve its interpolations and validate it.

    Args:
        overrides: as on Hydra's command line, without sweeps.

    Returns:
        The whole configuration as plain dicts and lists.

    Raises:
        ConfigError: an override or a file in conf/ is wrong.
    """
    overrides = implied(overrides)
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} gives several values: add -m to run all of them")
    try:
        with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
            composed = compose(ROOT_CONFIG, opened(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from None
    except (YAMLError, UnicodeDecodeError) as error:
        _name_unreadable()
        raise ConfigError(f"a configuration file is no YAML that can be read: {' '.join(str(error).split())}") from None
    return finish(composed, parsed)


def say_unread(stage: str, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Say which overrides a stage leaves out; they may be meant for the stages beside it.

    Args:
        stage: what is to run; where `model.weights` is given, so do those before it.
        config: composed from the overrides.
        overrides: as on the command line.
    """
    order = list(STAGE_KEYS)
    stages = order[: order.index(stage) + 1] if config["model"].get("weights") is not None else [stage]
    given = ((item.key_or_group, str(item.input_line)) for item in parse(overrides))
    left_out = [
        text
        for key, text in given
        if key not in ("sweep", "launcher") and not key.startswith("hydra") and not is_read(key, stages, config)
    ]
    if left_out:
        print(f"lobs {stage}: left out, as this stage does not read it: {' '.join(left_out)}", flush=True)


def _name_unreadable() -> None:
    """Say which file in conf/ cannot be read; Hydra's loader does not."""
    for file in sorted(config_dir().rglob("*.yaml")):
        read_yaml(file)


def finish(composed: DictConfig, overrides: Iterable[Override]) -> dict[str, Any]:
    """A composed configuration as a validated dict.

    `methods.<name>` adds what the experiment sets for the method chosen. What is given by hand wins over conf/: a
    tolerance (flops, size) takes the place of the density (who gives both is told so), `method.x=...` that of
    `methods.<name>.x`, and `retrain.x=...` that of the method's own `method.retrain.x`.

    Args:
        composed: what Hydra made; may still hold the node `hydra`.
        overrides: those of the command line.

    Returns:
        The configuration.

    Raises:
        ConfigError: a value is not accepted or an interpolation fails.
    """
    try:
        config: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    config.pop("hydra", None)
    given = {override.key_or_group for override in overrides}
    if "density" not in given and any(config.get(key) is not None for key in BUDGETS[1:]):
        config["density"] = None
    check_tuned(config["methods"])
    _tune(config, given)
    for key in given:
        group, _, leaf = key.partition(".")
        if group == "retrain" and f"method.{key}" not in given:
            config["method"]["retrain"].pop(leaf, None)
    validate(config)
    return config


def _tune(config: dict[str, Any], given: set[str]) -> None:
    """Put the experiment's settings for the chosen method, `methods.<name>`, into `method`."""
    method, tuned = config["method"], config["methods"].get(config["method"]["name"])
    for key, value in (tuned if isinstance(tuned, dict) else {}).items():
        if key == "density" or f"method.{key}" in given:
            continue  # the density's interpolation has been resolved by now
        if isinstance(value, dict):
            fresh = {name: entry for name, entry in value.items() if f"method.{key}.{name}" not in given}
            method[key] = {**(method[key] if isinstance(method[key], dict) else {}), **fresh}
        else:
            method[key] = value


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides and check what they address: keys of the schema, files of the groups.

    Args:
        overrides: as on Hydra's command line.

    Returns:
        The overrides in Hydra's own form.

    Raises:
        ConfigError: a key, a group's option or the syntax is wrong.
    """
    # Only to see what a glob stands for are the groups' files needed here.
    parser = OverridesParser.create(_config_loader() if any("glob(" in text for text in overrides) else None)
    parsed = []
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except HydraException:
            raise ConfigError(f"{text!r} cannot be read: write key=value") from None
        if not override.key_or_group.startswith("hydra"):
            _check_address(override)
        parsed.append(override)
    return parsed


def _config_loader() -> ConfigLoader:
    with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
        return GlobalHydra.instance().config_loader()


def _check_address(override: Override) -> None:
    if override.is_delete():
        raise ConfigError(f"{override.input_line} is not accepted: give the key another value, no key can be removed")
    folder, key = config_dir(), override.key_or_group
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    values = [value.text if isinstance(value, QuotedString) else value for value in values] or [None]
    if key and (folder / key).is_dir():
        options = sorted(path.stem for path in (folder / key).glob("*.yaml"))
        for value in values:
            if str(value) not in options:
                raise ConfigError(f"{key}={value} is not accepted: one of {', '.join(options)}")
    elif "/" in key:
        groups = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ConfigError(unknown_key(key, values[0], groups))
    else:
        check_key(key, values[0])


def implied(overrides: Sequence[str]) -> list[str]:
    """The same overrides; a network without an experiment is one of somebody's own, conf/experiment/own.yaml."""
    keys = {text.partition("=")[0].lstrip("+") for text in overrides}
    own = "model._target_" in keys and not keys & {"experiment", "model"}
    return ["experiment=own", *overrides] if own else list(overrides)


def opened(overrides: Sequence[str]) -> list[str]:
    """The same overrides, with leave to add keys where the schema does not fix them (a solver's options, say)."""
    # Of a network of somebody's own only its maker knows the arguments.
    own = any(text.startswith(("model._target_=", "model=own", "experiment=own")) for text in overrides)
    keys = (*OPEN_KEYS, "model.") if own else OPEN_KEYS
    return [f"++{text}" if text.startswith(keys) else text for text in overrides]


def points(overrides: Sequence[str]) -> list[list[str]]:
    """The points of a sweep, each as overrides without sweeps, in the order in which Hydra runs them.

    Args:
        overrides: as on Hydra's command line; `+sweep=<name>` adds the parameters of conf/sweep/<name>.yaml.

    Returns:
        A list of overrides per point.

    Raises:
        ConfigError: an override is wrong, or a sweep without an end.
    """
    # As in Hydra's BasicSweeper: of a key that is given twice the last values count, in the first one's place.
    varied: dict[str, list[str]] = {}
    for override in parse([*_sweep_parameters(overrides), *opened(overrides)]):
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            raise ConfigError(f"{override.input_line} is not accepted: values, range(...), choice(...), glob(...)")
        key = override.get_key_element()
        varied[key] = [f"{key}={value}" for value in values]
    return [[item for item in point if not item.startswith("hydra")] for point in product(*varied.values())]


def _sweep_parameters(overrides: Sequence[str]) -> list[str]:
    """What Hydra's sweeper adds to the overrides by itself: `hydra.sweeper.params` of the sweep that is named."""
    parsed = parse(overrides)
    named = [str(override.input_line) for override in parsed if override.key_or_group == "sweep"]
    if not named:
        return []
    try:
        with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
            composed = compose(ROOT_CONFIG, named, return_hydra_config=True)
    except (YAMLError, UnicodeDecodeError) as error:
        _name_unreadable()
        raise ConfigError(f"a configuration file is no YAML that can be read: {' '.join(str(error).split())}") from None
    return [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]


def _one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages span lines and name types; what counts is the key and the first line."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first = str(cause).strip().splitlines()[0]
    key = getattr(cause, "full_key", None)
    if key and "is not in struct" in first:
        return f"unknown key {key}"
    rule = accepted(key)
    return (f"{key}: {first}" if key else first) + (f"; accepted: {rule}" if rule else "")
