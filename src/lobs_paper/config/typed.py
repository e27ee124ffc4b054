"""The overrides that the user has typed: a command that a message names would be another one without them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lobs_paper.config.stage_parts import is_read

_typed: ContextVar[tuple[list[str], dict[str, Any]]] = ContextVar("_typed", default=([], {}))


@contextmanager
def typed(words: Iterable[str], config: Mapping[str, Any]) -> Iterator[None]:
    """Know what was typed while a stage runs.

    Args:
        words: overrides, ``key=value``.
        config: the whole configuration that they gave.
    """
    token = _typed.set((list(words), dict(config)))
    try:
        yield
    finally:
        _typed.reset(token)


def with_typed(command: str, stage: str) -> str:
    """A command with the typed overrides that its stage reads, but those of keys that it has.

    Args:
        command: ``lobs <stage> key=value ...``.
        stage: that it runs.

    Returns:
        The command, to be typed as it is.
    """
    words, config = _typed.get()
    there = {word.partition("=")[0] for word in command.split()}
    keys = {word: word.partition("=")[0].lstrip("+~") for word in words}
    further = [word for word, key in keys.items() if key not in there and is_read(key, [stage], config)]
    return " ".join([command, *map(shlex.quote, further)])
