"""A job from beginning to end: layers pruned, the network corrected, every layer's record written."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from lobs.allocation.budget import Budget
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import fallback_note
from lobs.base.warning import warn
from lobs.bounds import bound_from_weights
from lobs.calibration.batches import CalibrationBatches
from lobs.layers.checks import independent_copy, lost_any
from lobs.layers.matrix import view_of, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.repair.correction import correct, correctable
from lobs.repair.refit import STEPS, refit
from lobs.result import LayerRecord, PruneResult
from lobs.schedule.job import Job
from lobs.schedule.layer_result import LayerResult
from lobs.schedule.one_shot import prune_at_once
from lobs.schedule.sequential import prune_in_sequence


def run(job: Job) -> PruneResult:
    """Prune and correct a network.

    Args:
        job: what is to be done.

    Returns:
        The job's copy of the network with its masks and records.
    """
    batches = cast("CalibrationBatches", job.sharing.batches)
    records, masks, dense = [], {}, {}
    remarks: list[str] = []
    decided, remarked = len(job.decisions), len(job.remarks)
    modules = prunable_layers(job.dense)
    for step in prune_in_sequence(job, batches) if job.sequential else prune_at_once(job):
        dense[step.name] = step.trained
        # What was zero before counts as removed, even where a pattern would keep it.
        mask = step.mask[:, : step.features] & (step.trained[:, : step.features] != 0)
        module = modules[step.name]
        masks[step.name] = view_of(module).shaped(module, mask)
        records.append(_record(step, masks[step.name]))
        if step.note is not None:
            remarks.append(f"layer {step.name!r}: {step.note}")
    notes = [decision.note for decision in job.decisions[decided:] if decision.note is not None]
    for note in notes:
        warn(job.staged(note))
    notes += job.remarks[remarked:] + remarks
    uncorrected, correction = {}, job.correct
    if job.correct != "none":
        uncorrected = correctable(job.pruned)
        correction = correct(job.dense, job.pruned, batches, job.correct, memory=job.execution.memory)
    bound = bound_from_weights(dense, job.pruned, job.statistics)
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in records]
    kept = sum(record.kept for record in records)
    density = kept / sum(record.kept + record.removed for record in records)
    return PruneResult(job.pruned, masks, density, records, correction, uncorrected, notes=notes)


def no_worse_than_uniform(job: Job, start: nn.Module, result: PruneResult) -> PruneResult:
    """Where ``global`` hardly helps on the dense network's inputs, the network that ``uniform`` gives is made, too.

    What follows a decision (a sequence, a correction) may turn it round, so that the two networks are compared.

    Args:
        job: that was run.
        start: the network before it.
        result: of it.

    Returns:
        The result, or the other network's where that one's outputs are nearer to the dense network's; the job's
        decisions then say so.
    """
    if not (job.beside and any(decision.doubtful for decision in job.decisions)):
        return result
    # The counts that were compared, which keep to the budget: on its own ``uniform`` leaves every layer a weight.
    shares = {record.name: record.kept + record.removed for record in result.layers}
    densities = {name: 1 - job.decisions[-1].uniform[name] / whole for name, whole in shares.items()}
    plain = replace(job.sharing, budget=Budget(densities=densities), allocation="uniform", losses=None)
    pruned = independent_copy(start)
    execution = job.execution.inside("uniform")
    rival = run(replace(job, pruned=pruned, sharing=plain, execution=execution, decisions=[]))
    measure = OutputDistance(job.dense, cast("CalibrationBatches", job.sharing.compared_on))
    ours, theirs = (measure.of_network(network) for network in (result.model, rival.model))
    if ours <= theirs:
        return result
    note = fallback_note(ours, theirs)
    warn(job.staged(note))
    last = job.decisions[-1]
    counts = {record.name: record.removed for record in rival.layers}
    job.decisions.append(replace(last, counts=counts, shared_by="uniform", unit_weights=None, note=note, gave_way=True))
    return replace(rival, notes=[*rival.notes, note])


def refitted(job: Job, result: PruneResult) -> PruneResult:
    """The result with its kept weights refitted, where the job asks for it.

    Args:
        job: that was run.
        result: of it; its network is changed.

    Returns:
        The result, bounds included; where the job leaves it open, a refit that cannot be made is a note.

    Raises:
        ValueError: what `lobs.refit` raises, where the job asks for it.
    """
    if job.refit is False or (job.refit is None and not lost_any(job.dense, result.masks)):
        return result
    before = {key: value.detach().clone() for key, value in result.model.named_parameters()}
    batches, held_out = cast("CalibrationBatches", job.sharing.batches), job.sharing.held_out
    shown, steps = job.execution.progress, STEPS if job.refit is None or job.refit is True else int(job.refit)
    try:
        done = refit(
            job.dense, result.model, batches, held_out=held_out, masks=result.masks, steps=steps, progress=shown
        )
    except ValueError as error:
        if job.refit:
            raise
        return replace(result, notes=[*result.notes, f"not refitted: {error}"])
    after = dict(result.model.named_parameters())
    moved = {key: value for key, value in before.items() if not torch.equal(value, after[key])}
    return with_bounds(job, replace(result, refit=done, before_refit=moved))


def with_bounds(job: Job, result: PruneResult) -> PruneResult:
    """The result with the bounds of its network as it is now.

    Args:
        job: whose dense network is another object than the result's.
        result: with records.

    Returns:
        The result, its records' bounds anew.
    """
    dense = prunable_layers(job.dense)
    weights = {name: weight_matrix(dense[name], layer.bias) for name, layer in job.statistics.items()}
    bound = bound_from_weights(weights, result.model, job.statistics)
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in result.layers]
    return replace(result, layers=records)


def _record(step: LayerResult, mask: Tensor) -> LayerRecord:
    kept = int(mask.sum())
    return LayerRecord(
        name=step.name,
        shape=tuple(mask.shape),
        density=kept / step.removable,
        kept=kept,
        removed=step.removable - kept,
        error=step.error,
        relative_error=step.relative_error,
        sensitivity_threshold=step.sensitivity_threshold,
        bound_contribution=0.0,  # known when the whole network is pruned
        seconds=step.seconds,
        damping=step.damping,
    )
