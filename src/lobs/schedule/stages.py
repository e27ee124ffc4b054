"""Pruning in stages: to the budget over looser ones, each from what the one before left, without any training.

Statistics, targets and sensitivities are those of the network pruned so far: the quadratic models behind scores and
shares hold near the network that they were made for, and half of the weights are less far away than all. What is
removed stays removed. In sequence the targets are the dense network's outputs in every stage, so that a stage repairs
what the stages before it broke.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from lobs.allocation.budget import Budget
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.collect import collect_statistics
from lobs.calibration.statistics import layer_error
from lobs.layers.checks import independent_copy
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import prunable_layers
from lobs.result import PruneResult
from lobs.schedule.job import Job
from lobs.schedule.run import no_worse_than_uniform, run, with_bounds

# Stages where their number is not said: one at four times the budget, one at twice, one at it.
STAGES = 3


def stage_budgets(budget: Budget, stages: int | Sequence[float]) -> list[Budget]:
    """The budgets of all stages, the last of them the one that was asked for.

    Args:
        budget: a density or a share of multiply-adds.
        stages: how many, each with twice the next one's share (those of 1 and more are left out); or the shares before
            the last.

    Returns:
        Falling budgets.

    Raises:
        ValueError: the budget is another one, or the stages are not falling shares above it.
        TypeError: ``stages`` is neither.
    """
    key = next(iter(budget.asked))
    if isinstance(stages, bool) or not isinstance(stages, (int, Iterable)) or isinstance(stages, (str, bytes)):
        raise TypeError(f"stages must be how many, or the shares kept before the last one; got {stages!r}")
    if stages == 1:
        return [budget]
    if key not in ("density", "flops"):
        raise ValueError(f"stages={stages!r} go with density or flops, got {budget}")
    last = cast("float", getattr(budget, key))
    if isinstance(stages, int):
        if stages < 1:
            raise ValueError(f"stages must be at least 1, got {stages}")
        shares: list[Any] = []
        while last > 0 and len(shares) < stages - 1 and (share := last * 2 ** (len(shares) + 1)) < 1:
            shares.insert(0, share)
    else:
        shares = list(stages)
        if any(not isinstance(share, (int, float)) for share in shares):
            raise TypeError(f"stages must be numbers, got {stages!r}")
        falling = [1.0, *shares, last]
        if any(not after < before for before, after in pairwise(falling)):
            raise ValueError(f"stages must fall from below 1 to above {key}={last}, got {list(stages)}")
    return [*(replace(budget, **{key: share}) for share in shares), budget]


def run_in_stages(job: Job, budgets: Sequence[Budget]) -> PruneResult:
    """Prune a network stage by stage.

    Args:
        job: what is to be done in the end; its paths and losses serve the first stage.
        budgets: of the stages (`stage_budgets`).

    Returns:
        The last stage's result; its errors and bounds are those against the dense network.
    """
    last = len(budgets) - 1
    if not last:
        return no_worse_than_uniform(job, job.dense, run(job))
    batches = cast("CalibrationBatches", job.sharing.batches)
    keep = job.keep_samples
    if keep is None:
        keep = max(job.statistics[name].kept_samples for name in job.names)
    start, result, notes = job.dense, None, list[str]()
    for index, budget in enumerate(budgets):
        execution = job.execution.inside(f"stage{index + 1}")
        sharing, stage = replace(job.sharing, budget=budget), job
        if result is not None:
            start = result.model
            folder = execution.inside("statistics").place
            found = collect_statistics(
                start, batches, job.names, keep_samples=keep, memory=execution.memory, folder=folder
            )
            sharing = replace(sharing, losses=None, sensitivities=None)
            stage = replace(job, pruned=independent_copy(start), statistics=found, paths=None)
        correct = job.correct if index == last else "none"
        stage = replace(stage, sharing=sharing, execution=execution, correct=correct, decisions=[])
        result = no_worse_than_uniform(stage, start, run(stage))
        job.decisions.extend(stage.decisions)
        notes += [f"at {budget}: {note}" for note in result.notes]
    return replace(_against_dense(job, cast("PruneResult", result)), notes=notes)


def _against_dense(job: Job, result: PruneResult) -> PruneResult:
    """The records with errors and bounds against the dense network; in sequence the errors are that already."""
    if not job.sequential:
        before, after = prunable_layers(job.dense), prunable_layers(result.model)
        records = []
        for record in result.layers:
            layer = job.statistics[record.name]
            trained, found = (weight_matrix(layers[record.name], layer.bias).double() for layers in (before, after))
            error, power = (layer_error(part, layer.second_moment) for part in (found - trained, trained))
            records.append(replace(record, error=error, relative_error=error / power if power else 0.0))
        result = replace(result, layers=records)
    return with_bounds(job, result)
