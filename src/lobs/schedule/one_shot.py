"""How the layers are gone through: all from the dense network's inputs, or each from what the pruned ones leave."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from lobs.allocation.allocate import allocate, check_names, counts_for
from lobs.allocation.budget import Budget, Limits
from lobs.allocation.knapsack import Curve
from lobs.allocation.loss_curves import loss_curves
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.unit_budget import unit_counts
from lobs.base.atomic import replacing
from lobs.base.memory import ceiling
from lobs.base.tensor_files import layer_file, read_tensors, write_tensors
from lobs.calibration.batches import CalibrationBatches, calibration_batches
from lobs.calibration.statistics import LayerStatistics, Statistics, check_fit
from lobs.layers.consumers import Link, drop_columns, readers
from lobs.layers.matrix import Prunable, set_weight_matrix, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.schedule.checkpoint import Step
from lobs.schedule.sequential import prune_in_sequence
from lobs.solvers import PruningPath, Solver, make
from lobs.solvers.recomputed import RecomputedPath, path_bytes, whole

# Calibration inputs that the measuring allocations look at, rounded up to whole batches.
MEASURED_IMAGES = 2000
# Shares that bring the outputs no nearer than by this factor on the dense network's inputs may do harm in sequence.
DOUBTFUL = 0.5


def layer_paths(
    model: nn.Module,
    statistics: Statistics,
    method: str | Solver = "lobs",
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, PruningPath]:
    """The pruning path of every layer, to be used for many budgets (``prune(..., paths=paths)``).

    Args:
        model: the dense network; not changed.
        statistics: of its layers.
        method: a name from `methods` or a solver object.
        layers: names or patterns; None takes all layers that have statistics.
        progress: wraps the iterable of layer names.

    Returns:
        A path per layer, in the order of the network's calls.

    Raises:
        ValueError: an unknown method, a layer without statistics, or statistics that do not fit the layer.
    """
    solver = make(method) if isinstance(method, str) else method
    names = list(layers_with_statistics(model, statistics, layers))
    return {
        name: layer_path(model, statistics, solver, name) for name in (names if progress is None else progress(names))
    }


def paths_within(
    memory: float | None,
    model: nn.Module,
    statistics: Statistics,
    solver: Solver,
    names: Iterable[str],
    progress: Callable[[Iterable], Iterable],
    folder: Path | None = None,
) -> dict[str, PruningPath]:
    """`layer_paths` under a ceiling: of a path that does not fit any more only the curve is kept (`RecomputedPath`).

    Args:
        memory: bytes that the paths may keep alive together (`lobs.solvers.recomputed.path_bytes`), None: what is
            available.
        model: the dense network.
        statistics: of its layers.
        solver: the method.
        names: of the layers.
        progress: wraps the iterable of layer names.
        folder: see `layer_path`.

    Returns:
        A path per layer; those of whole units are all kept.
    """
    room = ceiling(memory, next(model.parameters()).device)
    paths: dict[str, PruningPath] = {}
    for name in progress(names):
        path = layer_path(model, statistics, solver, name, folder)
        needed = path_bytes(path)
        if needed > room and not path.removes_units:
            path = RecomputedPath(path, partial(layer_path, model, statistics, solver, name, folder))
        else:
            room -= needed
        paths[name] = path
    return paths


def layer_path(
    model: nn.Module, statistics: Statistics, solver: Solver, name: str, folder: Path | None = None
) -> PruningPath:
    """The path of one layer of a dense network.

    Args:
        model: the network.
        statistics: of its layers.
        solver: the method.
        name: of the layer.
        folder: what takes a solver long (`PruningPath.state`) is written here, and read where it lies here already: a
            folder belongs to one network, its statistics and one solver.

    Returns:
        The path.

    Raises:
        ValueError: the solver refuses the layer; the message names it.
    """
    layer, module = statistics[name], prunable_layers(model)[name]
    check_fit(name, module, layer)
    weight = weight_matrix(module, layer.bias)
    weight = weight.float() if weight.dtype.itemsize < 4 else weight
    layer = layer.to(weight.device)
    file = None if folder is None else layer_file(folder, name)
    if file is not None and (state := read_tensors(file)) is not None:
        return solver.restored(weight, layer, state)
    path = path_of(solver, name, weight, layer)
    if file is not None and path.state is not None:
        write_tensors(file, path.state, path.state.__getitem__, {})
    return path


def shared_losses(
    model: nn.Module,
    paths: Mapping[str, PruningPath],
    allocation: str,
    batches: Iterable | None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, Curve] | None:
    """The layers' losses as `Request` would look at them for every budget anew (``prune(..., losses=losses)``).

    Args:
        model: the dense network.
        paths: from `layer_paths`.
        allocation: a name in `ALLOCATIONS`.
        batches: calibration inputs, of which the first `MEASURED_IMAGES` count; None: none are looked at.
        progress: wraps the iterable of the layers that are measured.

    Returns:
        Removals and losses by layer; None where no budget is shared out by them: ``uniform``, or whole units removed.
    """
    if allocation == "uniform" or all(path.removes_units for path in paths.values()):
        return None
    images = None if batches is None else calibration_batches(batches).first_images(MEASURED_IMAGES)
    return loss_curves(paths, allocation, model=model, batches=images, progress=progress)


def gave_way(ours: float, theirs: float) -> str:
    """The note where measured shares are no better than uniform ones."""
    return f"allocation='global' gave way to 'uniform': distance of the outputs {ours:.3g}, with uniform {theirs:.3g}"


@dataclass(frozen=True)
class Request:
    """How much to remove: exactly one of density, tolerance and densities."""

    density: float | None
    tolerance: float | None
    densities: Mapping[str, float] | None
    flops: float | None
    size: int | None
    allocation: str
    limits: Limits | None
    rule: str
    batches: CalibrationBatches | None
    losses: Mapping[str, Curve] | None = None

    @property
    def asked(self) -> dict[str, object]:
        """What was asked for, in words and numbers."""
        keys = ("density", "tolerance", "densities", "flops", "size", "allocation", "limits", "rule")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def __post_init__(self) -> None:
        names = ("density", "tolerance", "densities", "flops", "size")
        budgets = [f"{key}={value!r}" for key in names if (value := getattr(self, key)) is not None]
        if len(budgets) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(budgets) or 'none'}")
        if self.limits and (self.tolerance is not None or self.densities is not None):
            raise ValueError(f"limits={dict(self.limits)!r} go with density, flops or size; got {budgets[0]}")

    @property
    def shared(self) -> bool:
        """Whether what a layer loses depends on the other layers."""
        alone = self.tolerance is not None or self.densities is not None
        return not alone and (self.density is None or self.allocation != "uniform" or bool(self.limits))

    def counts(
        self,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        links: Mapping[str, Link],
        progress: Callable[[Iterable], Iterable] | None = None,
    ) -> dict[str, int]:
        """How many weights each layer loses."""
        if links:
            if self.density is None or self.limits:
                raise ValueError("a method that removes whole units takes a density alone: no other budget, no limits")
            return unit_counts(paths, links, self.density)
        if self.tolerance is None and self.densities is None:
            return self._shared(model, paths, self.allocation, progress)
        if self.densities is not None:
            return counts_for(self.densities, paths)
        counts = {name: path.within(cast("float", self.tolerance), self.rule) for name, path in paths.items()}
        return {name: path.not_all(counts[name]) for name, path in paths.items()}

    def _shared(
        self,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        allocation: str,
        progress: Callable[[Iterable], Iterable] | None = None,
    ) -> dict[str, int]:
        unread = self.batches is None or allocation == "uniform"
        return allocate(
            paths,
            Budget(density=self.density, flops=self.flops, size=self.size),
            allocation,
            limits=self.limits,
            losses=None if allocation == "uniform" else self.losses,
            model=model,
            batches=None if unread else cast("CalibrationBatches", self.batches).first_images(MEASURED_IMAGES),
            progress=progress,
        )

    def checked(
        self, model: nn.Module, paths: Mapping[str, PruningPath], counts: dict[str, int]
    ) -> tuple[dict[str, int], float | None, str | None]:
        """The counts of ``global`` beside those of ``uniform``, both measured on the network pruned in one go.

        Args:
            model: the dense network.
            paths: of all layers.
            counts: of ``global``.

        Returns:
            counts: the better ones.
            ratio: of the distances, those of ``global`` over ``uniform``'s; None where nothing was compared.
            note: what was decided, where that is worth saying.
        """
        if self.allocation != "global" or self.batches is None:
            return counts, None, None
        if any(isinstance(path, RecomputedPath) for path in paths.values()):
            return counts, None, "allocation='global' was not compared with 'uniform': the paths do not fit into memory"
        even = self._shared(model, paths, "uniform")
        if even == counts:
            return counts, 1.0, None
        measure = OutputDistance(model, self.batches.first_images(MEASURED_IMAGES))
        ours, theirs = (
            measure.with_weights({name: path.at(chosen[name])[0] for name, path in paths.items()})
            for chosen in (counts, even)
        )
        if ours <= theirs:
            return counts, ours / theirs if theirs else 1.0, None
        return even, 1.0, gave_way(ours, theirs)

    def of_layer(self, name: str) -> Request:
        """The same for one layer alone, which must not be `shared`."""
        return self if self.densities is None else replace(self, densities={name: self.densities[name]})


@dataclass(frozen=True)
class Scheme:
    """One network's way from dense to pruned; the two must be different objects to go in sequence."""

    dense: nn.Module
    pruned: nn.Module
    statistics: Statistics
    method: str | Solver
    request: Request
    layers: Iterable[str] | None
    paths: Mapping[str, PruningPath] | None
    progress: Callable[[Iterable], Iterable] | None
    memory: float | None = None
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    doubts: list[float] = field(default_factory=list)

    @property
    def doubtful(self) -> bool:
        """Whether the shares that were measured hardly help (`Request.checked`)."""
        return any(ratio > DOUBTFUL for ratio in self.doubts)

    def at_once(self) -> Iterator[Step]:
        """Every layer from the dense network's inputs; one after the other where they do not depend on each other."""
        seconds: dict[str, float] = {}
        if self.paths is not None:
            yield from self._together(self.paths, seconds)
            return
        solver, timed = self._solver(), _timed(seconds, self.progress)
        if not self.request.shared:
            found = prunable_layers(self.pruned)
            for name in timed(self._names()):
                start = time.perf_counter()
                path = layer_path(self.dense, self.statistics, solver, name, self._paths_folder())
                if path.removes_units:
                    break
                count = path.at_least(self.request.of_layer(name).counts(self.dense, {name: path}, {})[name])
                solved = path.at(count)
                set_weight_matrix(found[name], solved[0], path.statistics.bias)
                step = Step.taken(name, path.weight, path, count, solved, time.perf_counter() - start)
                del path  # before the next one is computed
                yield step
            else:
                return
        yield from self._together(self._paths(solver, self._names(), timed), seconds)

    def _together(self, paths: Mapping[str, PruningPath], seconds: dict[str, float]) -> Iterator[Step]:
        """The counts of all layers are decided at once."""
        found = prunable_layers(self.pruned)
        links: dict[str, Link] = {}
        if all(path.removes_units for path in paths.values()):
            links = readers({name: found[name] for name in paths})
        counts = self._counts(lambda: paths, links)
        if not links:
            counts = {name: path.at_least(counts[name]) for name, path in paths.items()}
        solved: dict[str, tuple[Tensor, Tensor]] = {}
        if links:
            solved = {name: path.at(counts[name]) for name, path in paths.items()}
            weights, masks = ({name: pair[index] for name, pair in solved.items()} for index in (0, 1))
            drop_columns(weights, masks, links)
        for name, path in paths.items():
            start = time.perf_counter()
            computed = whole(path)
            pair = solved[name] if links else computed.at(counts[name])
            set_weight_matrix(found[name], pair[0], computed.statistics.bias)
            spent = seconds.get(name, 0.0) + time.perf_counter() - start
            step = Step.taken(name, computed.weight, computed, counts[name], pair, spent)
            del computed
            yield step

    def _paths(self, solver: Solver, names: Iterable[str], progress: Callable) -> dict[str, PruningPath]:
        return paths_within(self.memory, self.dense, self.statistics, solver, names, progress, self._paths_folder())

    def _paths_folder(self) -> Path | None:
        return None if self.folder is None else self.folder / "paths"

    def _counts(self, paths: Callable[[], Mapping[str, PruningPath]], links: Mapping[str, Link]) -> dict[str, int]:
        """How many weights each layer loses; what an interrupted call decided stands."""
        file = None if self.folder is None else self.folder / "counts.json"
        if file is not None and file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
        else:
            known = paths()
            counts = self.request.counts(self.dense, known, links, self.progress)
            counts, ratio, note = (counts, None, None) if links else self.request.checked(self.dense, known, counts)
            found = {"counts": counts, "ratio": ratio, "note": note}
            if file is not None:
                with replacing(file) as unfinished:
                    unfinished.write_text(json.dumps(found), encoding="utf-8")
        if found["note"] is not None:
            self.notes.append(found["note"])
            warnings.warn(found["note"], stacklevel=6)
        if found["ratio"] is not None:
            self.doubts.append(found["ratio"])
        return found["counts"]

    def _solver(self) -> Solver:
        return make(self.method) if isinstance(self.method, str) else self.method

    def _names(self) -> list[str]:
        """The layers to prune, in the order of their calls; every one's density is known where densities are given."""
        names = list(self.paths or layers_with_statistics(self.dense, self.statistics, self.layers))
        if self.request.densities is not None:
            check_names(self.request.densities, names)
        return names

    def in_sequence(self, batches: Iterable, keep_samples: int | None) -> Iterator[Step]:
        """Front to back; what a shared budget leaves to each layer is decided on the dense network first."""
        solver, names = self._solver(), self._names()
        counts: dict[str, int] = {}
        if self.request.shared:
            counts = self._counts(lambda: self.paths or self._paths(solver, names, self.progress or iter), {})

        def choose(name: str, path: PruningPath) -> int:
            return counts[name] if counts else self.request.of_layer(name).counts(self.dense, {name: path}, {})[name]

        yield from prune_in_sequence(
            self.dense,
            self.pruned,
            self.statistics,
            names,
            solver,
            partial(path_of, solver),
            choose,
            batches,
            keep_samples,
            self.progress,
            self.folder,
        )


def path_of(solver: Solver, name: str, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
    """A layer's path; where the solver refuses it, the message names the layer."""
    try:
        return solver(weight, statistics)
    except ValueError as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def layers_with_statistics(
    model: nn.Module, statistics: Statistics, layers: Iterable[str] | None
) -> dict[str, Prunable]:
    """The layers to prune, in the order of their calls.

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


def _timed(seconds: dict[str, float], progress: Callable[[Iterable], Iterable] | None) -> Callable:
    """A progress wrapper that also notes how long each layer took."""

    def wrap(names: Iterable[str]) -> Iterable[str]:
        for name in names if progress is None else progress(names):
            start = time.perf_counter()
            yield name
            seconds[name] = time.perf_counter() - start

    return wrap
