"""What a solver is, and how one is made from its name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from importlib import import_module

import torch
from torch import Tensor

from lobs.registry import METHODS, unknown_name
from lobs.solvers.path import PruningPath
from lobs.statistics import LayerStatistics


class Solver(ABC):
    """Turns a layer's weight and statistics into a `PruningPath`. Options are the constructor's arguments."""

    @abstractmethod
    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The path, for arguments that `__call__` has checked."""

    def __call__(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The pruning path of one layer (one group of a grouped convolution).

        Args:
            weight: ``[out, features (+ 1)]``, the bias in the last column where there is one.
            statistics: of the layer's inputs.

        Returns:
            The path.

        Raises:
            ValueError: shapes do not fit, or the weight is not finite.
        """
        size = statistics.second_moment.shape[-1]
        if weight.dim() != 2 or weight.shape[1] != size:
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} does not fit statistics of {size} inputs"
                f"{' (bias included)' * statistics.bias}: expected [out, {size}]"
            )
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weight of shape {tuple(weight.shape)} holds NaN or infinite values")
        return self.path(weight.detach(), statistics)


def make(name: str, **options: object) -> Solver:
    """A solver by its registered name.

    Returns:
        The solver with these options.

    Raises:
        ValueError: the name is unknown, or the solver does not take one of the options.
    """
    if name not in METHODS:
        raise ValueError(unknown_name("method", name, METHODS))
    method = METHODS[name]
    solver = getattr(import_module(method.module), method.solver)
    accepted = inspect.signature(solver).parameters
    for option in options:
        if option not in accepted:
            raise ValueError(f"method {name}: {unknown_name('option', option, dict(accepted))}")
    return solver(**options)
