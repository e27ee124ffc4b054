"""Finished parts of a stage that was interrupted: where they lie, and which of them still count."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lobs.base.fingerprint import CALL
from lobs_paper.config.code_digests import PACKAGES, SOURCES
from lobs_paper.config.own_code import own_code

# Keys that change no result: a run with another ceiling goes on where one that was too much for the machine stopped.
WITHOUT_EFFECT = ("memory",)


def partial_folder(output: Path, config: Mapping[str, Any], inputs: Iterable[Path]) -> Path:
    """A folder beside a stage's own for its finished parts; those of another configuration, input or code are removed.

    So are those whose note of what they belong to is damaged: the library would refuse them.

    Args:
        output: the stage's folder.
        config: of the stage.
        inputs: the files that it reads.

    Returns:
        ``<output>.partial/<digest of configuration, inputs and code>``, which may not exist yet.
    """
    relevant = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    relevant["code"] = [*_our_code(), *own_code(config).items()]
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode())
    for path in inputs:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    folder = output.with_name(f"{output.name}.partial") / digest.hexdigest()[:16]
    for other in folder.parent.glob("*"):
        if other != folder or not all(map(_readable, folder.rglob(CALL))):
            shutil.rmtree(other, ignore_errors=True)
    return folder


@cache
def _our_code() -> list[str]:
    """A digest of every module of both packages: which parts there are, and what they hold, changes with any."""
    files = sorted(file for package in PACKAGES for file in (SOURCES / package).rglob("*.py"))
    return [hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() for file in files]


def _readable(note: Path) -> bool:
    try:
        return isinstance(json.loads(note.read_text(encoding="utf-8")), dict)
    except (ValueError, OSError, RecursionError):
        return False


def forget(folder: Path) -> None:
    """Remove what `partial_folder` gave, once the stage is finished."""
    shutil.rmtree(folder.parent, ignore_errors=True)
