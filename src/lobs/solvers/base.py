"""What a solver is, and how one is made from its name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.registry import METHODS, unknown_name
from lobs.solvers.grouped import GroupedPath
from lobs.solvers.path import PruningPath


class Solver(ABC):
    """Turns a layer's weight and statistics into a `PruningPath`. Options are the constructor's arguments.

    A subclass in a file of `lobs.solvers` that has a ``line`` is a method, under the file's name (`lobs.registry`).

    Attributes:
        line: what the method does, for `lobs.methods`.
        needs: what it reads of the statistics beyond what is always collected.
        by_group: whether the groups of a grouped convolution are problems of their own, so that `path` is asked for
            each of them. False: `path` takes the whole layer, ``second_moment`` with one matrix per group.
    """

    line: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    by_group: ClassVar[bool] = True

    @abstractmethod
    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The path, for arguments that `__call__` has checked."""

    def restore(self, weight: Tensor, statistics: LayerStatistics, state: Mapping[str, Tensor]) -> PruningPath:
        """The path from its `PruningPath.state`, for solvers that set one."""
        return self.path(weight, statistics)

    def restored(self, weight: Tensor, statistics: LayerStatistics, state: Mapping[str, Tensor]) -> PruningPath:
        """The path that the solver gave for the same weight and statistics, without the work it took.

        Args:
            weight: as for `__call__`.
            statistics: likewise.
            state: `PruningPath.state` of that path.

        Returns:
            The same path, to the last bit.
        """
        weight, groups = weight.detach(), statistics.groups
        if groups == 1 or not self.by_group:
            return self.restore(weight, statistics, state)
        paths = []
        for index, rows in enumerate(weight.chunk(groups)):
            own = {key.split("/")[1]: value for key, value in state.items() if key.split("/")[0] == str(index)}
            paths.append(self.restore(rows, statistics.group(index), own))
        return GroupedPath(weight, statistics, paths)

    def __call__(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The pruning path of one layer; a grouped convolution's groups are merged into one (`GroupedPath`).

        Args:
            weight: ``[out, features (+ 1)]``, the bias in the last column where there is one; a group's rows together.
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
        weight, groups = weight.detach(), statistics.groups
        if len(weight) % groups:
            raise ValueError(f"a weight of {len(weight)} outputs does not fit statistics of {groups} groups")
        if groups == 1 or not self.by_group:
            return self.path(weight, statistics)
        parts = enumerate(weight.chunk(groups))
        return GroupedPath(weight, statistics, [self.path(rows, statistics.group(index)) for index, rows in parts])


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
