"""What a class of layers has to tell so that its modules can be seen as matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Prunable(nn.Module):
    """What every layer that is pruned has: a name for type checkers, nothing is made of it."""

    weight: nn.Parameter
    bias: nn.Parameter | None


class View(ABC):
    """How the modules of one class are seen as ``Z = W y``: a matrix W, and samples y for every call.

    The defaults are those of a weight ``[out, ...]`` whose remaining axes, flattened, are the features. Modules have a
    ``weight`` and a ``bias`` (or None) of their own.
    """

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        """Values of the weight's shape as a matrix ``[out, features]``, in the order of `samples`' features.

        Args:
            module: the layer.
            values: its weight, a mask, a derivative.

        Returns:
            The matrix, a view of the values where that can be.
        """
        return values.flatten(1)

    def shaped(self, module: Any, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`.

        Args:
            module: the layer.
            matrix: ``[out, features]``.

        Returns:
            Values of the weight's shape.
        """
        return matrix.reshape(module.weight.shape)

    def groups(self, module: Any) -> int:
        """In how many groups inputs and units fall: each group's units read that group's features alone."""
        return 1

    def overlap(self, module: Any) -> int:
        """In how many samples one element of the input can stand."""
        return 1

    @abstractmethod
    def samples(self, module: Any, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """What a call was given, as chunks of samples ``[groups, samples, features]`` without a bias."""

    @abstractmethod
    def unit_axis(self, outputs: Tensor) -> int:
        """The axis of a call's output along which its units lie, from the end."""

    @abstractmethod
    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first few inputs of a call with the outputs that belong to them: enough to check the layer by."""
