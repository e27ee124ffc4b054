"""Texts from outside, names of layers, data and runs: they are shown, and never markup of a page."""

from __future__ import annotations

import re
from typing import Any

# Of HTML, of Markdown and of the formulas in both; a line's end; and the colon that makes an address a link.
_MARKUP = re.compile(r"[<>\[\]`*|\\&~$\x00-\x1f\x7f]|:(?=//)")
_MARKDOWN = re.compile(r"[\\`*_\[\]|~$#]")
# What `lobs` accepts as the name of an experiment or a method, which becomes part of an address.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def plain(value: Any) -> Any:
    """Texts without markup, whatever page, figure or table they get into.

    Args:
        value: of a JSON file.

    Returns:
        The same; in all its texts, keys included, characters of markup stand as in addresses: ``<`` is ``%3C``.
    """
    if isinstance(value, str):
        return _MARKUP.sub(lambda match: f"%{ord(match[0]):02X}", value)
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def escaped(text: str) -> str:
    """A text for a cell of a Markdown table, which shows it as it is."""
    safe = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", safe).replace("://", "&#58;//")


def checked_name(name: str, source: object) -> str:
    """A name that becomes part of an address.

    Args:
        name: of an experiment or a method.
        source: where it was found, for the message.

    Returns:
        The name.

    Raises:
        ValueError: it is none that `lobs` would accept.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{source}: {name!r} is no name of letters, digits, '_', '-' and '.', as lobs gives them")
    return name
