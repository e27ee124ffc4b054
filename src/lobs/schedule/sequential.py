"""Pruning front to back: a layer sees the inputs that the already pruned network gives it.

The dense network's pre-activations z stay the target. With x the pruned network's inputs of a layer (the bias's 1
included), n samples and means over them::

    Psi = E[x x^T]        T = E[z x^T]        J(W') = E||W' x - z||^2 + lambda ||W' - W||_F^2

J holds W' near the trained W where the inputs say nothing, as damping does in the independent scheme. Completing the
square, with W* = (T + lambda W) (Psi + lambda I)^-1::

    J(W') = const + tr((W' - W*) (Psi + lambda I) (W' - W*)^T)

which is the independent scheme's problem with W* in the place of W: every solver runs on W* with Psi unchanged.
Methods that do not compensate (magnitude, Wanda, random) run as well but need not gain: W* is good whole, not in parts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lobs.allocation.sharing import Decision
from lobs.base.fingerprint import network_digest
from lobs.calibration.accumulator import InputSums, ResidualSums, widened
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.layerwise import LayerwisePasses, side_by_side
from lobs.calibration.statistics import LayerStatistics, check_fit
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import set_weight_matrix, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.layers.view import Prunable
from lobs.schedule.job import Job
from lobs.schedule.layer_result import LayerResult, written
from lobs.schedule.paths import PathMaker, for_layer, solve
from lobs.solvers import PruningPath, Solver
from lobs.solvers.hessian import DAMPING, checked_cholesky, damp
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import with_bias_column
from lobs.solvers.recomputed import whole


def reference_weight(
    weight: Tensor, statistics: LayerStatistics, damping: float = DAMPING, alpha: float | None = None
) -> Tensor:
    """W* = (T + lambda W) (Psi + lambda I)^-1, the weight that a layer would have best without any removal.

    Computed as ``W + (T - W Psi) (Psi + lambda I)^-1``, which is W to the last digit where nothing has been pruned.
    A weight of W that is zero was removed before and stays so: W* is then the best with zeros there.

    Args:
        weight: the trained W, ``[out, d]``.
        statistics: with targets.
        damping: lambda relative to Psi's mean diagonal over inputs that are ever non-zero, as the solvers have it.
        alpha: the absolute form, lambda = 1/alpha.

    Returns:
        ``[out, d]`` in the weight's dtype.

    Raises:
        SingularStatisticsError: Psi + lambda I cannot be inverted.
        ValueError: the statistics hold no targets.
    """
    if statistics.target_moment is None:
        raise ValueError("these statistics hold no targets: sequential pruning collects them")
    if statistics.groups > 1:
        rows = enumerate(weight.chunk(statistics.groups))
        return torch.cat([reference_weight(own, statistics.group(index), damping, alpha) for index, own in rows])
    hessian = damp(statistics, damping, alpha)
    trained = weight.double().clone()
    residual = (statistics.target_moment - trained @ statistics.second_moment)[:, hessian.alive] / hessian.scale
    factor = checked_cholesky(hessian.correlation, hessian.damping)
    repair = torch.cholesky_solve(residual.to(factor.dtype).T, factor).T
    trained[:, hessian.alive] += repair / hessian.scale
    best = trained.to(weight.dtype)
    removed = weight[:, : statistics.features] == 0
    if not removed.any():
        return best
    return solve_on_support(best, with_bias_column(~removed, statistics.bias), hessian)


@torch.no_grad()
def paired_statistics(
    dense: LayerwisePasses,
    pruned: LayerwisePasses,
    module: Prunable,
    name: str,
    inputs: Iterable[int],
    base: LayerStatistics,
    keep: int = 0,
) -> LayerStatistics:
    """Statistics of one layer's inputs in the pruned network, with the dense network's outputs as targets.

    Args:
        dense: through the trained network.
        pruned: through the same, pruned up to this layer.
        module: the layer, which still has its trained weights.
        name: of the layer; all of its calls count.
        inputs: how many network inputs every batch holds.
        base: the layer's statistics in the dense network: what does not depend on its inputs is taken from there.
        keep: how many pairs of input and target to keep as samples.

    Returns:
        The statistics.

    Raises:
        ValueError: an input is not finite, or a pass calls the layer less often.
    """
    sums, residuals = InputSums(base.bias, keep), ResidualSums(base.bias, keep)
    for count, (wanted, found) in zip(inputs, side_by_side(name, dense, pruned), strict=True):
        sums.inputs += count
        shapes = [[tuple(output.shape) for _, output in calls] for calls in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {name!r} gives {shapes[0]} in the pruned network and {shapes[1]} in the dense one: what "
                f"reaches it depends on the data (a mixture of experts), which cannot be pruned with sequential=True"
            )
        for (_, target), (given, output) in zip(wanted, found, strict=True):
            if not given.numel():
                continue
            sums.add_call(module, given)
            residuals.add_call(module, given, widened(target) - widened(output), target)
    moment = sums.second_moment(name)
    target_moment, target_power = residuals.target(weight_matrix(module, base.bias), moment)
    return replace(
        base,
        second_moment=moment[0] if len(moment) == 1 else moment,
        samples=sums.samples,
        inputs=sums.inputs,
        inputs_sample=sums.sample(),
        target_moment=target_moment,
        target_power=target_power,
        target_sample=residuals.reservoir.rows(),
    )


def prune_in_sequence(job: Job, batches: CalibrationBatches) -> Iterator[LayerResult]:
    """Prune layers front to back, each with the inputs that the layers pruned before leave to it.

    A shared budget is divided first, on the network as it comes. Every finished layer is written to the job's folder,
    and read where it is found there. The solver's damping is W*'s lambda, too; solvers without any take the library's
    default.

    Args:
        job: what is to be done; its two networks must be different objects.
        batches: calibration inputs, read a few times, or once per layer (`lobs.calibration.layerwise.LayerwisePasses`).

    Yields:
        What was done to each layer.

    Raises:
        ValueError: a layer is not called by these batches, or the solver removes whole units.
    """
    maker = PathMaker(job.pruned, job.statistics, job.solver, job.execution.inside("paths"))
    made: dict[str, PruningPath] = {}

    def paths() -> Mapping[str, PruningPath]:
        made.update(job.paths or maker.paths(job.names))
        return made

    decision = job.decide(paths, {}) if job.sharing.together else None
    opening = made.get(job.names[0])
    made.clear()
    dense, pruned = prunable_layers(job.dense), prunable_layers(job.pruned)
    waiting = list(job.names)
    for step in _finished(job, pruned):
        set_weight_matrix(pruned[step.name], step.weight, job.statistics[step.name].bias)
        waiting.remove(step.name)
        yield step
    if not waiting:
        return
    first = waiting[0] if _opens(job, waiting) else None
    originals, copies = ({name: layers[name] for name in waiting if name != first} for layers in (dense, pruned))
    with (
        evaluation_mode(job.dense),
        evaluation_mode(job.pruned),
        LayerwisePasses(job.dense, originals, batches, 2, job.execution.memory) as wanted,
        LayerwisePasses(job.pruned, copies, batches, 2, job.execution.memory) as found,
    ):
        if note := wanted.note or found.note:
            job.remarks.append(note)
        inputs = wanted.batches.input_counts()
        for name in originals:
            if name not in wanted.calls:
                raise ValueError(f"layer {name!r} is never called with these batches: leave it out with layers=[...]")
        for name in job.execution.shown(waiting):
            start = time.perf_counter()
            if name == first:
                yield _step(job, pruned[name], name, whole(opening or maker.path(name)), decision, start)
                opening = None  # its path need not stay in memory
                continue
            module, base = copies[name], job.statistics[name]
            check_fit(name, module, base)
            keep = base.kept_samples if job.keep_samples is None else job.keep_samples
            layer = paired_statistics(wanted, found, module, name, inputs, base, keep)
            step = _step(job, module, name, _path(job.solver, name, module, layer), decision, start)
            del layer  # before the next ones are computed
            yield step


def _opens(job: Job, waiting: list[str]) -> bool:
    """Whether the first layer is next, in the dense network: its inputs are those of its statistics, and W* is W."""
    if waiting[:1] != job.names[:1] or job.keep_samples not in (None, job.statistics[waiting[0]].kept_samples):
        return False
    return network_digest(job.dense) == network_digest(job.pruned)


def _step(
    job: Job, module: Prunable, name: str, path: PruningPath, decision: Decision | None, start: float
) -> LayerResult:
    """One layer pruned along its path and written down; `start` is when its work began."""
    if path.removes_units:
        raise ValueError(
            f"{type(job.solver).__name__} removes whole units, which takes all layers at once: "
            f"it cannot be used with sequential=True"
        )
    bias = job.statistics[name].bias
    path = path if decision is None else decision.weighted(name, path)
    count = path.at_least(job.sharing.count(name, path) if decision is None else decision.counts[name])
    trained = weight_matrix(module, bias)
    solved = written(module, path.at(count), bias)
    step = LayerResult.taken(name, trained, path, count, solved, time.perf_counter() - start)
    if job.execution.place is not None:
        step.save(job.execution.place)
    return step


def _path(solver: Solver, name: str, module: Prunable, layer: LayerStatistics) -> PruningPath:
    """The path from W*, of a layer that still has the weight it came with."""
    weight = weight_matrix(module, layer.bias)
    weight = weight.float() if weight.dtype.itemsize < 4 else weight
    layer = layer.to(weight.device)
    damping, alpha = getattr(solver, "damping", DAMPING), getattr(solver, "alpha", None)
    try:
        weight = reference_weight(weight, layer, damping, alpha)
    except ValueError as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    return solve(for_layer(solver, module), name, weight, layer)


def _finished(job: Job, layers: Mapping[str, Prunable]) -> Iterator[LayerResult]:
    """The steps from the first layer on that an interrupted call left behind."""
    if job.execution.place is None:
        return
    for name in job.names:
        step = LayerResult.load(job.execution.place, name, weight_matrix(layers[name], job.statistics[name].bias))
        if step is None:
            return
        yield step
