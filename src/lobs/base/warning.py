"""Warnings that point to the caller's line, however deep in the library they arise."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def warn(message: str) -> None:
    """Warn at the first line outside of this library that led here."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and _ours(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _ours(frame: FrameType) -> bool:
    """Whether a line belongs to this library, or to torch's decorators between its lines."""
    return frame.f_globals.get("__name__", "").split(".")[0] in ("lobs", "torch", "contextlib")
