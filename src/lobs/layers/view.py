"""What a class of layers has to tell so that its modules can be seen as matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class View(ABC):
    """How the modules of one class are seen as ``Z = W y``, with ``W = weight.flatten(1)``."""

    @abstractmethod
    def samples(self, module: Any, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """What a call was given, as chunks of samples ``[groups, samples, features]`` without a bias."""

    @abstractmethod
    def unit_axis(self, outputs: Tensor) -> int:
        """The axis of a call's output along which its units lie, from the end."""

    @abstractmethod
    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first few inputs of a call with the outputs that belong to them: enough to check the layer by."""
