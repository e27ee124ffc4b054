"""YAML files, with every mistake in one line: what cannot be read, another encoding, a key that is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lobs_paper.config.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses what YAML's own loader passes over: of a key that is there twice the last one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping.

        Returns:
            It.

        Raises:
            ConstructorError: a key is there twice.
        """
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a file.

    Args:
        path: of a UTF-8 YAML file.

    Returns:
        What it holds.

    Raises:
        ConfigError: it cannot be read, is no YAML (tabs, say), or has a key twice; the message names file and line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML that can be read: {' '.join(str(error).split())}") from None
