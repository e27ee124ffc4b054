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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lobs.base.evaluation_mode import evaluation_mode
from lobs.calibration.accumulator import InputSums, ResidualSums, widened
from lobs.calibration.layerwise import Walk, side_by_side
from lobs.calibration.statistics import LayerStatistics, Statistics, check_fit
from lobs.layers.matrix import Prunable, input_samples, set_weight_matrix, unit_outputs, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.schedule.checkpoint import Step
from lobs.solvers import PruningPath, Solver
from lobs.solvers.hessian import DAMPING, checked_cholesky, damp
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import with_bias_column


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
    trained = weight.double()
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
    dense: Walk, pruned: Walk, module: Prunable, name: str, inputs: Iterable[int], base: LayerStatistics, keep: int = 0
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
        for (_, target), (given, output) in zip(wanted, found, strict=True):
            if target.shape != output.shape:
                raise ValueError(
                    f"layer {name!r} gives {tuple(output.shape)} in the pruned network and {tuple(target.shape)} in "
                    f"the dense one: what reaches it depends on the data (a mixture of experts), which cannot be "
                    f"pruned with sequential=True"
                )
            if not given.numel():
                continue
            targets = unit_outputs(module, target)
            rest = widened(targets) - widened(unit_outputs(module, output))
            start = 0
            for samples in input_samples(module, given):
                stop = start + samples.shape[1]
                sums.add(samples)
                residuals.add(samples, rest[start:stop], targets[start:stop])
                start = stop
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


def prune_in_sequence(
    dense: nn.Module,
    pruned: nn.Module,
    statistics: Statistics,
    names: Iterable[str],
    solver: Solver,
    path_of: Callable[[str, Tensor, LayerStatistics], PruningPath],
    choose: Callable[[str, PruningPath], int],
    batches: Iterable,
    keep_samples: int | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
    folder: Path | None = None,
) -> Iterator[Step]:
    """Prune layers front to back, each with the inputs that the layers pruned before leave to it.

    Args:
        dense: the trained network; not changed.
        pruned: its copy, changed in place layer by layer.
        statistics: of the dense network.
        names: of the layers to prune, in the order of their calls.
        solver: whose damping is W*'s lambda too; solvers without any take the library's default.
        path_of: name, weight and statistics of a layer -> its path by that solver.
        choose: name and path -> how many weights to remove.
        batches: calibration inputs, read a few times, or once per layer (`lobs.calibration.layerwise.Walk`).
        keep_samples: input vectors kept per layer; None: as many as ``statistics`` hold.
        progress: wraps the iterable of layer names.
        folder: every finished layer is written here, and read where it lies here already: a folder belongs to one
            network, its statistics and batches, one solver and one budget.

    Yields:
        What was done to each layer.

    Raises:
        ValueError: a layer is not called by these batches, or the solver removes whole units.
    """
    modules = {name: _module(pruned, name) for name in names}
    originals = {name: _module(dense, name) for name in modules}
    for step in _finished(originals, statistics, folder):
        set_weight_matrix(modules.pop(step.name), step.weight, statistics[step.name].bias)
        del originals[step.name]
        yield step
    if not modules:
        return
    damping, alpha = getattr(solver, "damping", DAMPING), getattr(solver, "alpha", None)
    with (
        evaluation_mode(dense),
        evaluation_mode(pruned),
        Walk(dense, originals, batches, together=2) as wanted,
        Walk(pruned, modules, batches, together=2) as found,
    ):
        inputs = wanted.batches.input_counts()
        for name in modules:
            if name not in wanted.calls:
                raise ValueError(f"layer {name!r} is never called with these batches: leave it out with layers=[...]")
        for name in modules if progress is None else progress(list(modules)):
            start = time.perf_counter()
            module, base = modules[name], statistics[name]
            check_fit(name, module, base)
            keep = _samples_held(base) if keep_samples is None else keep_samples
            layer = paired_statistics(wanted, found, module, name, inputs, base, keep)
            weight = weight_matrix(module, base.bias)
            layer = layer.to(weight.device)
            weight = weight.float() if weight.dtype.itemsize < 4 else weight
            try:
                weight = reference_weight(weight, layer, damping, alpha)
            except ValueError as error:
                raise type(error)(f"layer {name!r}: {error}") from error
            path = path_of(name, weight, layer)
            if path.removes_units:
                raise ValueError(
                    f"{type(solver).__name__} removes whole units, which takes all layers at once: "
                    f"it cannot be used with sequential=True"
                )
            count = path.at_least(choose(name, path))
            solved = path.at(count)
            set_weight_matrix(module, solved[0], base.bias)
            trained = weight_matrix(originals[name], base.bias)
            step = Step.taken(name, trained, path, count, solved, time.perf_counter() - start)
            del path, layer  # before the next ones are computed
            if folder is not None:
                step.save(folder)
            yield step


def _finished(originals: Mapping[str, Prunable], statistics: Statistics, folder: Path | None) -> Iterator[Step]:
    """The steps from the first layer on that an interrupted call left behind."""
    if folder is None:
        return
    for name, module in list(originals.items()):  # the caller takes out what it is given
        step = Step.load(folder, name, weight_matrix(module, statistics[name].bias))
        if step is None:
            return
        yield step


def _module(model: nn.Module, name: str) -> Prunable:
    return prunable_layers(model)[name]


def _samples_held(statistics: LayerStatistics) -> int:
    return 0 if statistics.inputs_sample is None else statistics.inputs_sample.shape[-2]
