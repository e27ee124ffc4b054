"""What a solver is, and how one is made from its name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.registry import METHODS, unknown_name
from lobs.solvers.grouped import GroupedPath
from lobs.solvers.path import PruningPath
from lobs.solvers.weighted import WeightedPath

P = TypeVar("P", bound=PruningPath)


class Solver(ABC):
    """Turns a layer's weight and statistics into a `PruningPath`. Options are the constructor's arguments.

    A subclass in a file of `lobs.solvers` that has a ``line`` is a method, under the file's name (`lobs.registry`).

    Attributes:
        line: what the method does, for `lobs.methods`.
        needs: what it reads of the statistics beyond what is always collected.
        by_group: whether the groups of a grouped convolution are problems of their own, so that `path` is asked for
            each of them. False: `path` takes the whole layer, ``second_moment`` with one matrix per group.
        units: whether whole units are removed.
    """

    line: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    by_group: ClassVar[bool] = True
    units: ClassVar[bool] = False

    def divides(self, weight: Tensor, statistics: LayerStatistics) -> bool:
        """Whether a layer's groups are solved one by one."""
        return statistics.groups > 1 and self.by_group

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
        divided = any("/" in key for key in state) if state else self.divides(weight, statistics)
        if not divided:
            return self._owned(self.restore(weight, statistics, state))
        own: list[dict[str, Tensor]] = [{} for _ in range(groups)]
        for key, value in state.items():
            index, name = key.split("/")
            own[int(index)][name] = value
        parts = zip(weight.chunk(groups), own, strict=True)
        paths = [self.restore(rows, statistics.group(index), found) for index, (rows, found) in enumerate(parts)]
        return self._owned(GroupedPath(weight, statistics, paths))

    def weighted(self, path: PruningPath, unit_weights: Tensor) -> WeightedPath:
        """The path of the same layer where unit i's error counts g_i times, ``sum_i g_i E_i`` (`PruningPath.weighted`).

        With ``D = diag(sqrt(g))`` this is the plain problem of the weight ``D W``: the method runs on that, and D is
        taken back from what it finds.

        Args:
            path: of this solver.
            unit_weights: g, float64 ``[out]``, all above 0 and about 1.

        Returns:
            The path; its curve is in the unit of the sum, its weights and sensitivities are those of the layer.
        """
        return self._scaled_back(path, unit_weights.sqrt().to(path.weight.device), self)

    def _scaled_back(
        self, path: PruningPath, scale: Tensor, made: Callable[[Tensor, LayerStatistics], PruningPath]
    ) -> WeightedPath:
        """The path that is ``made`` for the rows times their scale, as one of the layer's own weights."""
        # Half precision would lose the rows that count least.
        weight = (path.weight * scale[:, None]).to(torch.promote_types(path.weight.dtype, torch.float32))
        weight[path.weight == 0] = 0.0
        return self._owned(WeightedPath(path, made(weight, path.statistics.with_scaled_units(scale)), scale))

    def _owned(self, path: P) -> P:
        path.solver = self
        return path

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
        if not self.divides(weight, statistics):
            return self._owned(self.path(weight, statistics))
        parts = enumerate(weight.chunk(groups))
        paths = [self.path(rows, statistics.group(index)) for index, rows in parts]
        return self._owned(GroupedPath(weight, statistics, paths))


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
