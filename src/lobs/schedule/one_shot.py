"""All layers from the dense network's inputs, one after the other where they do not depend on each other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from lobs.allocation.sharing import solved
from lobs.layers.consumers import Consumer, consumers_of
from lobs.layers.network import prunable_layers
from lobs.layers.view import Prunable
from lobs.schedule.job import Job
from lobs.schedule.layer_result import LayerResult, written
from lobs.schedule.paths import PathMaker
from lobs.solvers import PruningPath
from lobs.solvers.recomputed import whole


def prune_at_once(job: Job) -> Iterator[LayerResult]:
    """Prune every layer from its own statistics.

    Args:
        job: what is to be done. Where it brings no paths and every layer's share is its own, one layer's path is in
            memory at a time.

    Yields:
        What was done to each layer.
    """
    if job.paths is not None:
        yield from _together(job, job.paths, {})
        return
    seconds: dict[str, float] = {}
    timed = replace(job.execution.inside("paths"), progress=lambda names: _timed(seconds, job.execution.shown(names)))
    maker = PathMaker(job.pruned, job.statistics, job.solver, timed)
    if not job.sharing.together:
        found = prunable_layers(job.pruned)
        for name in timed.shown(job.names):
            start = time.perf_counter()
            path = maker.path(name)
            if path.removes_units:
                break
            step = _step(job, found[name], name, path, start)
            del path  # before the next one is computed
            yield step
        else:
            return
    yield from _together(job, maker.paths(job.names), seconds)


def _step(job: Job, module: Prunable, name: str, path: PruningPath, start: float) -> LayerResult:
    count = path.at_least(job.sharing.count(name, path))
    pair = written(module, path.at(count), path.statistics.bias)
    return LayerResult.taken(name, path.weight, path, count, pair, time.perf_counter() - start)


def _together(job: Job, paths: Mapping[str, PruningPath], seconds: dict[str, float]) -> Iterator[LayerResult]:
    """The counts of all layers are decided at once; where they lose single weights, one is in memory at a time."""
    found = prunable_layers(job.pruned)
    consumers: dict[str, Consumer] = {}
    if all(path.removes_units for path in paths.values()):
        consumers = consumers_of({name: found[name] for name in paths})
    decision = job.decide(lambda: paths, consumers)
    counts = decision.counts
    if not consumers:
        paths = {name: decision.weighted(name, path) for name, path in paths.items()}
        counts = {name: path.at_least(counts[name]) for name, path in paths.items()}
    units = solved(paths, counts, consumers) if consumers else {}
    for name, path in paths.items():
        start = time.perf_counter()
        computed = whole(path)
        pair = units[name] if consumers else computed.at(counts[name])
        pair = written(found[name], pair, computed.statistics.bias)
        spent = seconds.get(name, 0.0) + time.perf_counter() - start
        step = LayerResult.taken(name, computed.weight, computed, counts[name], pair, spent)
        del computed
        yield step


def _timed(seconds: dict[str, float], names: Iterable[str]) -> Iterator[str]:
    """The names, while noting how long each one's work takes."""
    for name in names:
        start = time.perf_counter()
        yield name
        seconds[name] = time.perf_counter() - start
