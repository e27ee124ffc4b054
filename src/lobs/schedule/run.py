"""A job from beginning to end: layers pruned, the network corrected, every layer's record written."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import Tensor

from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, fallback_note
from lobs.base.warning import warn
from lobs.bounds import bound_from_weights
from lobs.calibration.batches import CalibrationBatches
from lobs.layers.checks import independent_copy
from lobs.layers.network import prunable_layers
from lobs.repair.correction import correct, correctable
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
    modules = prunable_layers(job.dense)
    for step in prune_in_sequence(job, batches) if job.sequential else prune_at_once(job):
        dense[step.name] = step.trained
        # What was zero before counts as removed, even where a pattern would keep it.
        mask = step.mask[:, : step.features] & (step.trained[:, : step.features] != 0)
        masks[step.name] = mask.reshape(modules[step.name].weight.shape)
        records.append(_record(step, masks[step.name]))
    notes = [decision.note for decision in job.decisions if decision.note is not None]
    for note in notes:
        warn(note)
    uncorrected, correction = {}, job.correct
    if job.correct != "none":
        uncorrected = correctable(job.pruned)
        correction = correct(job.dense, job.pruned, batches, job.correct)
    bound = bound_from_weights(dense, job.pruned, job.statistics)
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in records]
    kept = sum(record.kept for record in records)
    density = kept / sum(record.kept + record.removed for record in records)
    return PruneResult(job.pruned, masks, density, records, correction, uncorrected, notes=notes)


def no_worse_than_uniform(job: Job, result: PruneResult) -> PruneResult:
    """Where ``global`` hardly helps on the dense network's inputs, the network that ``uniform`` gives is made, too.

    What follows a decision (a sequence, a correction) may turn it round, so that the two networks are compared.

    Args:
        job: that was run.
        result: of it.

    Returns:
        The result, or the other network's where that one's outputs are nearer to the dense network's; the job's
        decisions then say so.
    """
    if not (job.beside and any(decision.doubtful for decision in job.decisions)):
        return result
    plain = replace(job.sharing, allocation="uniform", losses=None)
    pruned = independent_copy(job.dense)
    execution = job.execution.inside("uniform")
    rival = run(replace(job, pruned=pruned, sharing=plain, execution=execution, decisions=[]))
    measure = OutputDistance(job.dense, cast("CalibrationBatches", job.sharing.images))
    ours, theirs = (measure.of_network(network) for network in (result.model, rival.model))
    if ours <= theirs:
        return result
    note = fallback_note(ours, theirs)
    warn(note)
    job.decisions.append(Decision({record.name: record.removed for record in rival.layers}, note=note, gave_way=True))
    return replace(rival, notes=[*rival.notes, note])


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
