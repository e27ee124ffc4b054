"""A mistake in the configuration, and its one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake in the configuration: one line that names the key, the value and what is accepted."""


def unknown_key(key: str, value: object, names: Iterable[str], whose: str = "") -> str:
    """The message for a key that does not exist, with the closest one that does."""
    *parents, leaf = key.split(".")
    names = list(names)
    close = difflib.get_close_matches(leaf, names, n=1)
    hint = f"did you mean {'.'.join([*parents, close[0]])}? " if close else ""
    return f"unknown key {key}={value!r}: {hint}accepted{whose}: {', '.join(names) or 'none'}"
