"""Names of code that are the user's own: what he types, and what his conf/ says.

A resolved file may have come with somebody else's results. What it names is imported or built only where conf/ names
it, too; everything else in it is data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lobs_paper.config.errors import ConfigError
from lobs_paper.config.folder import config_dir
from lobs_paper.config.yaml_files import read_yaml

# Where a configuration can name code: key `_target_` of a group, weights or outputs that a function gives.
PLACES = (("model", "_target_"), ("model", "weights"), ("model", "output"), ("data", "_target_"))
_KEYS = {key for _, key in PLACES}


def check_names(config: Mapping[str, Any], source: Path) -> None:
    """Check that the code which a file's configuration names is named by conf/, too.

    Args:
        config: what the file holds.
        source: the file, for the message.

    Raises:
        ConfigError: it names other code.
    """
    for group, key in PLACES:
        name = config.get(group, {}).get(key)
        # Without a dot nothing can be imported, and a file of weights is read without running code.
        data = not isinstance(name, str) or "." not in name or (key == "weights" and Path(name).is_file())
        if not data and name not in _named(config_dir()):
            raise ConfigError(
                f"{source}: {group}.{key}={name} is not accepted: code is imported only where conf/ or the command "
                f"line names it, so give {group}.{key}={name} by hand if you trust it, or add it to {config_dir()}"
            )


def check_network(experiment: str, model: Mapping[str, Any]) -> None:
    """Check that a network described beside some results is the one that conf/ describes for their experiment.

    Args:
        experiment: its name.
        model: group `model` of the results' configuration.

    Raises:
        ConfigError: conf/ has no such experiment, or another network for it.
    """
    if _model(experiment, config_dir()) != model:
        raise ConfigError(
            f"the network of experiment={experiment} is not the one that {config_dir()} describes: it is not built"
        )


@cache
def _named(folder: Path) -> set[str]:
    return {name for file in folder.rglob("*.yaml") for name in _names(read_yaml(file))}


def _names(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from [value] if key in _KEYS and isinstance(value, str) else _names(value)


@cache
def _model(experiment: str, _: Path) -> dict[str, Any]:
    from lobs_paper.config.compose import load  # Hydra, which a stage does without

    return load([f"experiment={experiment}"])["model"]
