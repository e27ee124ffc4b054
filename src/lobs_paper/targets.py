"""Classes and functions that a configuration names by `_target_`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def import_target(key: str, target: str) -> Any:
    """The class or function at a dotted path; one in a module of the working directory is found, too.

    Args:
        key: of the configuration, for messages.
        target: ``package.module.name``.

    Returns:
        The class or function.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = target.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as for a script there; the command `lobs` starts elsewhere
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}={target!r} cannot be imported: {error}") from None
