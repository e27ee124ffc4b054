"""Modules that compute with several matrices at once: what a class of them has to tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn


class Slice(NamedTuple):
    """Where a part's weight or bias lies: rows of one of the owner's parameters."""

    parameter: str
    rows: slice = slice(None)


class Composite(ABC):
    """What a class of such modules has to tell."""

    kinds: tuple[type[nn.Module], ...]

    @abstractmethod
    def slices(self, module: Any) -> dict[str, tuple[Slice, Slice | None]]:
        """Weight and bias of every part by its name, in the order of their calls."""

    @abstractmethod
    def forward(self, module: Any, parts: Mapping[str, nn.Linear], *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives in evaluation mode, computed by calls of the parts."""
