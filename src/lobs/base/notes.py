"""Small notes in folders of finished parts: JSON that knows whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from lobs.base.atomic import replacing
from lobs.base.warning import warn

# Key beside a note's own: the CRC-32 of their text.
CHECKSUM = "crc32"


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write a note that `read_note` reads, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps({**note, CHECKSUM: _checksum(note)}, indent=1), encoding="utf-8")


def read_note(path: Path) -> dict[str, Any] | None:
    """A note, known to be as it was written.

    Args:
        path: the file.

    Returns:
        What was noted; None where there is no file, or a damaged one, which is said.
    """
    if not path.exists():
        return None
    try:
        note = dict(json.loads(path.read_text(encoding="utf-8")))
        if note.pop(CHECKSUM, None) == _checksum(note):
            return note
        cause = "its checksum is missing or another one"
    except (ValueError, TypeError, OSError, RecursionError) as error:
        cause = str(error)
    warn(f"{path} is damaged: it is computed again ({cause})")
    return None


def _checksum(note: Mapping[str, Any]) -> str:
    return f"{crc32(json.dumps(note).encode()):08x}"
