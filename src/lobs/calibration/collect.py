"""Streams calibration inputs through a network into per-layer statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lobs.base.arguments import check_count, check_folder, check_names
from lobs.base.distributed import gathered, rank_and_size, require_group, together
from lobs.base.fingerprint import CALL, claim_folder, digest, network_digest
from lobs.base.modes import outside_modes, same_buffers
from lobs.base.network_inputs import Call, Output
from lobs.calibration.accumulator import combined
from lobs.calibration.batches import CalibrationBatches, calibration_batches, called_batches
from lobs.calibration.collection_pass import CalibrationPass
from lobs.calibration.inputs import answer, check_batches, network_input
from lobs.calibration.outputs import output_tensors
from lobs.calibration.spilling import SpilledStatistics
from lobs.calibration.statistics import Statistics, summed_up
from lobs.layers.checks import check_filled
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.network import prunable_layers


@outside_modes
@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
    *,
    loss: str | None = None,
    keep_samples: int = 0,
    distributed: bool = False,
    memory: float | None = None,
    folder: str | Path | None = None,
    exclude: Iterable[str] = (),
    call: Call | None = None,
    output: Output | None = None,
) -> Statistics:
    """Stream calibration inputs through a network in evaluation mode and keep each layer's statistics.

    With ``distributed`` the running sums of all processes of the default process group are added up, so that every
    process returns the statistics of all batches: those of one process that saw all of them, to float64 rounding. The
    sample that ``keep_samples`` asks for is then a uniform one of all inputs, but another one than a single process's.

    Args:
        model: the network; its training flags are put back as they were.
        batches: any iterable of batches, read once: inputs, tuples of which the first entry is the inputs (a tensor,
            several in a tuple or list, or a mapping), or mappings of inputs by name. With ``distributed`` every process
            gives its own share of them, at least one.
        layers: names or patterns of the layers wanted; None takes every one that is called.
        progress: wraps the iterable (``tqdm``, say).
        loss: also collect the curvature of this loss (``"cross_entropy"``, ``"mse"``), which OBD needs; batches are
            then ``(input, target)``.
        keep_samples: also keep this many input vectors of every layer, drawn uniformly; Net-Trim needs some.
        distributed: sum over the processes of `torch.distributed`, which must all call this with the same network.
            Where one of them fails, all raise.
        memory: ceiling in bytes on the second moments held at once; None: what is available, less a margin. Where all
            layers' do not fit (8 bytes times features squared each), they are collected in groups that do, front to
            back, with one pass over the batches per group, and finished layers are kept in files until they are asked
            for. A single layer's is never cut. Results do not depend on the ceiling.
        folder: finished groups are written here whether they fit or not, and layers that are found here are not
            collected again: a folder belongs to one network and one set of batches, another one's is refused. None: a
            temporary folder, where one is needed.
        exclude: names or patterns of layers that are not wanted.
        call: for batches of any other kind: a function of the network and a batch (moved to the network's device),
            which gives the outputs.
        output: what of the outputs is compared: a function of them, a key or attribute's name, or an index; None: all
            tensors of floating point in them.

    Returns:
        `Statistics`, layers in the order of their first call. Modules that share a weight are one layer, with the
        samples of all of them.

    Raises:
        ValueError: there is no batch, an input is not finite, a layer asked for is never called or does not give its
            weight times its inputs, the network answers the same batch differently twice (dropout left on, noise) or
            is compiled, batches are others on a further reading, or the folder belongs to another call. Or
            ``distributed`` is asked for without a process group, or a second pass over an iterator that is used up.
        TypeError: ``batches`` is no iterable of batches, or a batch is of a kind that only ``call`` can
            deal with.
    """
    check_batches(batches)
    check_count("keep_samples", keep_samples, 0)
    layers = None if layers is None else check_names("layers", layers)
    exclude = check_names("exclude", exclude)
    batches = called_batches(batches, model, call, output)
    modules = prunable_layers(model, layers)
    if not modules:
        raise ValueError(f"layers=[] asks for no layer; the network has {', '.join(prunable_layers(model))}")
    if exclude:
        left_out = prunable_layers(model, exclude)
        modules = {name: module for name, module in modules.items() if name not in left_out}
        if not modules:
            raise ValueError(f"exclude={exclude!r} leaves no layer; the network has {', '.join(left_out)}")
    if distributed:
        require_group()
    check_filled(modules)
    folder = check_folder(folder)
    folder = folder / f"process{rank_and_size()[0]}" if folder is not None and distributed else folder
    spilled = SpilledStatistics(modules, memory, folder, distributed)
    readings = calibration_batches(batches, memory=0) if spilled.several else batches

    network = network_digest(model)

    def claim() -> None:
        if folder is not None and isinstance(readings, CalibrationBatches):
            asked = {"layers": list(modules), "loss": loss, "keep_samples": keep_samples}
            asked = {"network": network, **asked, "batches": readings.fingerprint()}
            # What the forward functions do is in no digest of the network: their outputs tell.
            if (first := readings.first()) is not None:
                with evaluation_mode(model), same_buffers(model):
                    answers = answer(model, network_input(first, model), "a batch")
                asked["outputs"] = digest(output_tensors(answers))
            claim_folder(folder, asked)
            spilled.of = digest(asked.items())

    if folder is not None and (folder / CALL).exists():
        together(claim) if distributed else claim()
    while missing := spilled.next_group(batches):
        # Keys drawn alike in all processes would sample the same rows of every share.
        seed = rank_and_size()[0] if distributed else 0
        pass_ = CalibrationPass(model, missing, keep_samples, seed, loss)
        with same_buffers(model):
            together(partial(pass_.run, readings, progress)) if distributed else pass_.run(readings, progress)
        called, calls, curvature = pass_.sums, replace(pass_.calls, network=network), pass_.curvature
        if distributed:
            called, calls = combined(called), gathered(calls)[0]
            if curvature is not None:
                curvature.combine()
        never = [name for name in missing if name not in called]
        if layers is not None and never:
            raise ValueError(f"layer {never[0]!r} is {calls.reason(never[0])}: leave it out of layers=")
        results = {name: summed_up(called.pop(name), name, modules[name]) for name in list(called)}
        if curvature is not None:
            diagonals = curvature.result()
            results = {name: replace(layer, loss_curvature=diagonals[name]) for name, layer in results.items()}
        final = calls.called[-1] if calls.called else None
        if final in results:
            results[final] = replace(results[final], last=True)
        together(claim) if distributed else claim()
        spilled.put(results, calls)
    return spilled.statistics()
