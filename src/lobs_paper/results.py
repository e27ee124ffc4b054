"""The metrics.json of a stage: what it says of the files beside it, and how reports read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from lobs_paper.files import read_object

MARKER = "metrics.json"
MADE_FROM, DIGEST, CHECKSUM, FILES = "made_from", "digest", "checksum", "files"
# What a stage goes on with; the metrics alone tell nothing of it.
MAIN = {"train": "model", "collect": "statistics", "prune": "model", "retrain": "model"}


def read_result(folder: Path, stage: str) -> dict[str, Any]:
    """The metrics of a stage as reports show them.

    Args:
        folder: of the stage's own: of a method, or of a seed.
        stage: its name.

    Returns:
        What is there; nothing where there is no result, or one of an earlier result than lies beside it, which is said.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / stage / MARKER
    if not path.exists():
        return {}
    metrics = read_object(path, dict)
    if metrics.get(CHECKSUM, checksum(metrics)) != checksum(metrics):
        raise ValueError(f"{path} is damaged, it has another checksum: run `lobs {stage}` again")
    made = metrics.get(MADE_FROM)
    for earlier in made.keys() & MAIN.keys() if isinstance(made, dict) else ():
        own = stage in ("train", "collect") or earlier in ("prune", "retrain")
        there = (folder if own else folder.parent) / earlier / MARKER
        digest = read_object(there, dict).get(DIGEST) if there.exists() else None
        if digest is not None and digest != made[earlier]:
            say_once(f"{path} was made from another result of {earlier} than lies there now: it is left out")
            return {}
    return metrics


def file_checksum(path: Path) -> str | None:
    """Of a file's bytes; None where it is missing."""
    return f"{crc32(path.read_bytes()):08x}" if path.is_file() else None


def checksum(metrics: Mapping[str, Any]) -> str:
    """Of the metrics, however they are written down; their own is left out."""
    rest = {key: value for key, value in metrics.items() if key != CHECKSUM}
    return f"{crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


@cache
def say_once(note: str) -> None:
    """Print a note, however often its reason is come upon."""
    print(note)
