"""Corrections of a pruned network from calibration data alone: biases and batch-norm statistics.

Pruning changes the mean and the spread of what layers give on. Neither needs retraining to be put right:

* ``bias``: front to back every prunable layer's bias takes the mean difference of its outputs over the samples,
  ``b += E[z_dense] - E[z_pruned]``, measured in the network corrected so far. Where a batch norm follows the layer
  directly its bias does, by the batch norm's outputs. Units that were removed whole stay so.
* ``batch_norm``: the running mean and variance of every batch norm become the averages over the calibration batches of
  the pruned network (one pass, ``momentum=None``), everything else in evaluation mode.
* ``both``: batch norms first, then biases.
* ``auto``: what leaves the smallest mean squared distance to the dense network's outputs on the last quarter of the
  batches, when estimated on the others; then estimated anew on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lobs.base.memory import check_ceiling
from lobs.base.network_inputs import Call, Output
from lobs.calibration.batches import CalibrationBatches, called_batches
from lobs.calibration.inputs import input_count, network_input
from lobs.calibration.layerwise import LayerwisePasses, count_calls, first_input, require_repeatable
from lobs.calibration.outputs import output_tensors
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import find_view, unit_outputs, weight_matrix
from lobs.layers.network import bias_columns, named_modules, prunable_layers
from lobs.layers.view import Prunable
from lobs.registry import CORRECTIONS, unknown_name

Place: TypeAlias = Prunable | _BatchNorm


@torch.no_grad()
def correct(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable,
    how: str = "auto",
    *,
    call: Call | None = None,
    output: Output | None = None,
    memory: float | None = None,
) -> str:
    """Correct a pruned network in place.

    Args:
        dense: the trained network; not changed.
        pruned: the same network with pruned weights.
        batches: of calibration inputs, of the kinds that `lobs.collect_statistics` takes; read several times.
        how: a name in `CORRECTIONS`.
        call: runs the network on a batch where its kind needs that (`lobs.collect_statistics`).
        output: what of the outputs is compared, likewise.
        memory: ceiling in bytes on the inputs that wait before a layer; None: a share of what is free. Where that is
            short, every layer is reached by passes of its own, with the same result.

    Returns:
        What was done: ``none``, ``bias``, ``batch_norm`` or ``both``.

    Raises:
        ValueError: an unknown name, batches that are missing, empty or a one-shot iterator, networks that differ, or
            ``auto`` with a single batch or with a network whose output is no tensor.
    """
    check_ceiling(memory)
    if how not in CORRECTIONS:
        raise ValueError(unknown_name("correction", how, CORRECTIONS))
    if how == "none":
        return how
    batches = require_repeatable(called_batches(batches, dense, call, output), f"correct={how!r}")
    if prunable_layers(dense).keys() != prunable_layers(pruned).keys():
        different = prunable_layers(dense).keys() ^ prunable_layers(pruned).keys()
        raise ValueError(f"the networks have different layers: {', '.join(sorted(different))}")
    for name, module in prunable_layers(dense).items():
        shapes = [tuple(layer.weight.shape) for layer in (module, prunable_layers(pruned)[name])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {name!r} has the shape {shapes[0]} in the dense network, {shapes[1]} in the pruned"
            )
    first_input(dense, batches)  # before statistics are reset
    if not _batch_norms(pruned):  # what is asked for of them cannot be done
        how = {"batch_norm": "none", "both": "bias"}.get(how, how)
    with evaluation_mode(dense), evaluation_mode(pruned):
        if how == "auto":
            how = _best(dense, pruned, batches, memory)
        _apply(dense, pruned, batches, how, memory)
    return how


def _apply(dense: nn.Module, pruned: nn.Module, batches: CalibrationBatches, how: str, memory: float | None) -> None:
    if how in ("batch_norm", "both"):
        _estimate_batch_norms(pruned, batches)
    if how in ("bias", "both"):
        _correct_biases(dense, pruned, batches, memory)


def _best(dense: nn.Module, pruned: nn.Module, batches: CalibrationBatches, memory: float | None) -> str:
    count = len(batches.input_counts())
    if count < 2:
        raise ValueError(f"correct='auto' holds the last quarter of the batches out: give at least 2, got {count}")
    held_out = max(1, count // 4)
    first, last = batches.part(0, count - held_out), batches.part(count - held_out, count)
    tried = candidates(pruned)
    before = correctable(pruned)
    distances = {}
    for how in tried:
        _apply(dense, pruned, first, how, memory)
        distances[how] = output_distance(dense, pruned, last)
        pruned.load_state_dict(before, strict=False)
    return min(tried, key=lambda how: distances[how])


def candidates(model: nn.Module) -> list[str]:
    """The corrections that a network has places for: those of batch norms where it has some.

    Args:
        model: the network.

    Returns:
        Names of `CORRECTIONS`, without ``auto``.
    """
    return ["none", "bias"] + ["batch_norm", "both"] * bool(_batch_norms(model))


def correctable(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a correction may change: biases, and what batch norms count.

    Args:
        model: the network.

    Returns:
        Part of its `state_dict`.
    """
    found = {name: part.detach().clone() for name, part in model.named_parameters() if part.dim() == 1}
    for name, module in _batch_norms(model).items():
        found |= {f"{name}.{key}" if name else key: value.clone() for key, value in module.named_buffers(recurse=False)}
    return found


@torch.no_grad()
def output_distance(dense: nn.Module, pruned: nn.Module, batches: Iterable) -> float:
    """The mean over network inputs of the squared distance ``||f_pruned(x) - f_dense(x)||^2`` of the outputs.

    Of outputs of several tensors: the sum of each one's squared distance over its own squared norm.

    Args:
        dense: in evaluation mode, like ``pruned``.
        pruned: the network compared with it.
        batches: of calibration inputs.

    Returns:
        The distance.

    Raises:
        ValueError: the networks' outputs hold no tensors, or others.
    """
    totals: list[float] = []
    powers: list[float] = []
    count = 0
    for batch in batches:
        expected, found = (output_tensors(network_input(batch, dense).run(network)) for network in (dense, pruned))
        if not expected or [part.shape for part in expected] != [part.shape for part in found]:
            shapes = [[tuple(part.shape) for part in parts] for parts in (expected, found)]
            raise ValueError(
                f"outputs can be compared where they are tensors of the same shapes; got {shapes}: name a part that is "
                f"alike with output="
            )
        totals, powers = totals or [0.0] * len(expected), powers or [0.0] * len(expected)
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            seen = one.isfinite()  # masked logits say nothing
            totals[index] += float(torch.where(seen, other - one, 0.0).double().square().sum())
            powers[index] += float(torch.where(seen, one, 0.0).double().square().sum())
        count += input_count(batch)
    if len(totals) == 1:
        return totals[0] / count
    # Of several tensors each counts by its own size.
    return sum(total / power for total, power in zip(totals, powers, strict=True) if power)


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms with running statistics."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: module for name, module in found.items() if module.running_mean is not None}


def _estimate_batch_norms(model: nn.Module, batches: Iterable) -> None:
    """One pass with the batch norms alone in training mode, cumulative averages of all batches."""
    norms = list(_batch_norms(model).values())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        counted = 0
        for batch in batches:
            try:
                network_input(batch, model).run(model)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                continue  # a batch of one, behind a pooling or of vectors, has no variance
            counted += 1
        if not counted:
            raise ValueError("batch norms are estimated from batches of at least 2 inputs: no batch holds so many")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _correct_biases(dense: nn.Module, pruned: nn.Module, batches: CalibrationBatches, memory: float | None) -> None:
    """Add the mean differences of the outputs, front to back."""
    places = _places(dense, batches)
    means = {name: _Mean(places[name]) for name in count_calls(dense, batches, places)}
    handles = [places[name].register_forward_hook(mean.hook) for name, mean in means.items()]
    try:
        for batch in batches:
            network_input(batch, dense).run(dense)
    finally:
        for handle in handles:
            handle.remove()
    copies = dict(named_modules(pruned))
    copied = {name: cast("Place", copies[name]) for name in means}
    with LayerwisePasses(pruned, copied, batches, memory=memory) as passes:
        for name, expected in means.items():
            module = copied[name]
            found = _Mean(module)
            for calls in passes.visits(name):
                for inputs, output in calls:
                    found.see(inputs, output)
            bias = cast("Tensor", module.bias)
            difference = expected.value() - found.value()
            bias.add_(difference.masked_fill(_gone(module), 0.0).to(bias.dtype))


def _places(model: nn.Module, batches: Iterable) -> dict[str, Place]:
    """Where the means are put right: the batch norm that takes a layer's output as it is, else the layer itself.

    Returns:
        By name; layers where neither has a bias are left out.
    """
    names = {module: name for name, module in named_modules(model)}
    places: dict[str, Place] = {}
    latest: list[tuple[Prunable, Tensor]] = []

    def after_layer(module: Prunable, _: tuple, output: Tensor) -> None:
        latest[:] = [(module, output)]
        name = names[module]
        if module.bias is not None and isinstance(output, Tensor) and own.get(name, False):
            places[name] = module

    def before_norm(module: _BatchNorm, args: tuple) -> None:
        if latest and args and args[0] is latest[0][1] and module.bias is not None:
            places.pop(names[latest[0][0]], None)
            places[names[module]] = module

    own = bias_columns(model)  # a bias that others share is not put right for one of them
    handles = [m.register_forward_hook(after_layer) for m in names if find_view(m)]
    handles += [m.register_forward_pre_hook(before_norm) for m in names if isinstance(m, _BatchNorm)]
    try:
        first_input(model, batches).run(model)
    finally:
        for handle in handles:
            handle.remove()
    return places


class _Mean:
    """The mean of a module's outputs over samples; a convolution's positions count as samples."""

    def __init__(self, module: Place) -> None:
        self.module = module
        self.total: Tensor | None = None
        self.count = 0

    def hook(self, _: nn.Module, __: tuple, output: Tensor) -> None:
        self.see(output, output)

    def see(self, _: Tensor, output: Tensor) -> None:
        if isinstance(self.module, _BatchNorm):  # its channels come second
            rows = output.movedim(1, -1).flatten(0, -2)
        else:
            rows = unit_outputs(self.module, output)
        part = rows.sum(0, dtype=torch.float64)
        self.total = part if self.total is None else self.total + part
        self.count += len(rows)

    def value(self) -> Tensor:
        return cast("Tensor", self.total) / self.count


def _gone(module: Place) -> Tensor:
    """The units that were removed whole: neither weights nor a bias are left, and they stay so."""
    bias = cast("Tensor", module.bias)
    if isinstance(module, _BatchNorm):
        return torch.zeros_like(bias, dtype=torch.bool)
    return (bias == 0) & (weight_matrix(module, False) == 0).all(1)
