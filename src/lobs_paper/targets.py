"""Classes and functions that a configuration names by `_target_`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lobs_paper.config.own_code import find_here


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
    find_here()
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}={target!r} cannot be imported: {error}") from None
