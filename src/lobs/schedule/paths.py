"""The layers' pruning paths: made one by one, all together under a ceiling, and read again after an interruption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from lobs.base.execution import Execution
from lobs.base.fingerprint import digest
from lobs.base.memory import ceiling
from lobs.base.tensor_files import OF, layer_file, read_part, write_tensors
from lobs.calibration.statistics import LayerStatistics, Statistics, check_fit
from lobs.layers.checks import check_changeable, check_owners, check_plain
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import prunable_layers
from lobs.layers.view import Prunable
from lobs.solvers import PruningPath, Solver
from lobs.solvers.ranking import read_pattern
from lobs.solvers.recomputed import RecomputedPath, path_bytes


@dataclass(frozen=True)
class PathMaker:
    """Makes the paths of a dense network's layers.

    Attributes:
        model: the network; not changed.
        statistics: of its layers.
        solver: the method.
        execution: its folder keeps what takes a solver long (`PruningPath.state`); it belongs to one network, its
            statistics and one solver.
    """

    model: nn.Module
    statistics: Mapping[str, LayerStatistics]
    solver: Solver
    execution: Execution = field(default_factory=Execution)

    def path(self, name: str) -> PruningPath:
        """The path of one layer.

        Args:
            name: of the layer.

        Returns:
            The path.

        Raises:
            ValueError: the statistics do not fit, or the solver refuses the layer; the message names it.
        """
        layer, module = self.statistics[name], self._modules[name]
        check_fit(name, module, layer)
        weight = weight_matrix(module, layer.bias)
        weight = weight.float() if weight.dtype.itemsize < 4 else weight
        layer = layer.to(weight.device)
        file = self._file(name)
        solver = for_layer(self.solver, module)
        of = digest([name, weight, layer.second_moment.diagonal(dim1=-2, dim2=-1)])
        if file is not None and (part := read_part(file, of)) is not None:
            return solver.restored(weight, layer, part.tensors())
        path = solve(solver, name, weight, layer)
        if file is not None and path.state is not None:
            write_tensors(file, path.state, path.state.__getitem__, {OF: of})
        return path

    def paths(self, names: Iterable[str]) -> dict[str, PruningPath]:
        """All paths under the ceiling: of one that does not fit any more only the curve is kept (`RecomputedPath`).

        Args:
            names: of the layers.

        Returns:
            A path per layer; those of whole units are all kept.
        """
        room = ceiling(self.execution.memory, next(self.model.parameters()).device)
        paths: dict[str, PruningPath] = {}
        for name in self.execution.shown(list(names)):
            path = self.path(name)
            needed = path_bytes(path)
            if needed > room and not path.removes_units:
                path = RecomputedPath(path, partial(self.path, name))
            else:
                room -= needed
            paths[name] = path
        return paths

    def holds(self, name: str) -> bool:
        """Whether the folder has what took a layer long."""
        file = self._file(name)
        return file is not None and file.exists()

    @cached_property
    def _modules(self) -> dict[str, Prunable]:
        return prunable_layers(self.model)

    def _file(self, name: str) -> Path | None:
        return None if self.execution.place is None else layer_file(self.execution.place, name)


def for_layer(solver: Solver, module: Prunable) -> Solver:
    """The solver for one layer: an N:M pattern counts a convolution's channels, at every place of its kernel.

    Args:
        solver: the method.
        module: the layer.

    Returns:
        The same solver, or one whose pattern knows how many places the kernel has.
    """
    pattern, places = getattr(solver, "pattern", None), prod(module.weight.shape[2:])
    if pattern is None or places == 1:
        return solver
    return replace(cast("Any", solver), pattern=read_pattern(pattern)._replace(step=places))


def solve(solver: Solver, name: str, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
    """A layer's path; where the solver refuses it, the message names the layer."""
    try:
        return solver(weight, statistics)
    except ValueError as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def layers_with_statistics(
    model: nn.Module, statistics: Statistics, layers: Iterable[str] | None
) -> dict[str, Prunable]:
    """The layers to prune, in the order of their calls.

    Args:
        model: the network.
        statistics: of its layers.
        layers: names or patterns; None takes all that have statistics.

    Returns:
        The modules by name.

    Raises:
        ValueError: a layer has no statistics, or statistics belong to no layer.
    """
    modules = prunable_layers(model, layers)
    if layers is None:
        absent = [name for name in statistics if name not in modules]
        if absent:
            raise ValueError(f"the statistics hold layer {absent[0]!r}; the network has {', '.join(modules)}")
    for name in modules if layers is not None else ():
        if name not in statistics:
            raise ValueError(f"no statistics of layer {name!r}; there are those of {', '.join(statistics)}")
    return {name: modules[name] for name in statistics if name in modules}


def selected(
    model: nn.Module, statistics: Statistics, layers: list[str] | None, exclude: list[str]
) -> tuple[list[str], set[str]]:
    """The layers to prune, and those that the caller did not want pruned.

    Args:
        model: the network.
        statistics: of its layers.
        layers: names or patterns of those to prune; None takes all that have statistics.
        exclude: names or patterns of layers among them that stay dense.

    Returns:
        Names in the order of the layers' calls, at least one; and the names left out.

    Raises:
        ValueError: no layer is left.
    """
    found = layers_with_statistics(model, statistics, layers)
    left_out = set(prunable_layers(model, exclude)) if exclude else set()
    names = [name for name in found if name not in left_out]
    if not names:
        asked = f"exclude={exclude!r} leaves" if exclude else f"layers={layers!r} leave"
        raise ValueError(f"{asked} no layer to prune; those with statistics are {', '.join(statistics) or 'none'}")
    if layers is not None:
        left_out |= prunable_layers(model).keys() - prunable_layers(model, layers).keys()
    return names, left_out


def check_network(model: nn.Module, names: list[str], statistics: Statistics) -> None:
    """Refuse layers whose weights cannot be changed, or are more than their statistics say.

    Args:
        model: the network.
        names: of the layers to prune.
        statistics: of its layers.

    Raises:
        ValueError: the network was made in inference mode, or a layer's weight is computed or used elsewhere.
    """
    modules = prunable_layers(model)
    check_changeable(model)
    check_plain({name: modules[name] for name in names})
    check_owners(model, names)
    functional = statistics.calls.functional
    for name in names:
        if name in functional:
            raise ValueError(
                f"layer {name!r}: its weight or bias is used outside of it, too, by {functional[name]}, whose inputs "
                f"are not looked at: leave it out with exclude=[{name!r}]"
            )
