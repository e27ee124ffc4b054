"""What a batch of calibration data gives a network, and whether the network answers alike twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from inspect import Parameter

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lobs.base.modes import same_buffers
from lobs.base.network_inputs import Inputs, forward_signature, misfit, run, shown
from lobs.base.trees import copied
from lobs.calibration.calling import OTHERWISE, called
from lobs.calibration.outputs import output_tensors
from lobs.layers.evaluation import evaluation_mode


def network_input(batch: object, model: nn.Module) -> Inputs:
    """The inputs of a batch, on the network's device: a copy, since the network may change them in place.

    Args:
        batch: a tensor, a mapping of inputs by name, or a tuple or list that starts with the inputs: a tensor, several
            in a tuple or list, or a mapping.
        model: its first parameter's device is taken.

    Returns:
        The inputs, which know how the network is called with them.

    Raises:
        TypeError: the batch is of another kind, or names inputs that the network's forward does not take.
    """
    inputs = called(batch).inputs()
    signature = forward_signature(model) if inputs.kwargs else None
    if signature is not None:
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        unknown = [name for name in inputs.kwargs if name not in signature.parameters]
        if unknown and Parameter.VAR_KEYWORD not in kinds:
            raise TypeError(
                f"a batch's {', '.join(map(repr, unknown))} is no argument of {type(model).__name__}.forward, which "
                f"takes {', '.join(signature.parameters)}: leave it out of the batches, or {OTHERWISE}"
            )
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    return replace(inputs, args=copied(inputs.args, device), kwargs=copied(dict(inputs.kwargs), device))


def input_count(batch: object) -> int:
    """How many inputs a batch holds.

    Args:
        batch: see `network_input`.

    Returns:
        The rows of its first tensor, or the entries of a list that is one argument.
    """
    return len(called(batch).inputs())


def network_target(batch: object, inputs: Inputs) -> Tensor:
    """The target of a batch of ``(input, target)``, on the input's device.

    Args:
        batch: a tuple or list.
        inputs: its input.

    Returns:
        The target.

    Raises:
        TypeError: the batch has none.
    """
    batch = called(batch).content
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        raise TypeError(f"a loss needs batches of (input, target); got {type(batch).__name__}")
    return batch[1].to(inputs.device)


def check_batches(batches: object) -> None:
    """Refuse what can be iterated, but not batch by batch.

    Args:
        batches: what the caller gave.

    Raises:
        TypeError: it is one tensor, one ``(input, target)``, a mapping, a data set of single examples, or no iterable.
    """
    if isinstance(batches, Tensor):
        raise TypeError(
            f"batches must be an iterable of batches, got one tensor of shape {tuple(batches.shape)}: "
            f"give [tensor] or tensor.split(64)"
        )
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        inputs, target = batches
        if len(inputs) == len(target) and (inputs.dim(), inputs.dtype) != (target.dim(), target.dtype):
            raise TypeError(
                f"batches must be an iterable of batches, got one pair of an input {tuple(inputs.shape)} and a target "
                f"{tuple(target.shape)}: give [(input, target)]"
            )
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise TypeError(
            f"batches must be an iterable of batches, got the data set {type(batches).__name__} of single examples: "
            f"give torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of batches (a list of tensors, a DataLoader), got {type(batches).__name__}"
            + ": give [mapping]" * isinstance(batches, Mapping)
        )


def answer(model: nn.Module, inputs: Tensor | Inputs, which: str) -> object:
    """What is looked at of a network's outputs; where it cannot be run on such inputs, a sentence says so.

    Args:
        model: the network.
        inputs: may be changed by it.
        which: inputs they are, for the message.

    Returns:
        The outputs.

    Raises:
        ValueError: the network failed.
        OutOfMemoryError: for want of memory, as torch says it.
    """
    try:
        return run(model, inputs)
    except torch.OutOfMemoryError:  # not for want of the right inputs
        raise
    except (RuntimeError, TypeError, LookupError, AttributeError, AssertionError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
    kinds = {parameter.dtype for parameter in model.parameters()}
    given = {tensor.dtype for tensor in (inputs.tensors if isinstance(inputs, Inputs) else [inputs])}
    if kinds and not kinds & given:
        cause += f"; its parameters are {' and '.join(sorted(map(str, kinds)))}"
    if isinstance(inputs, Inputs) and misfit(model, inputs):
        cause += (
            "; several inputs are given as ((a, b), target), or by name in a mapping; "
            "or give call=lambda model, batch: ..."
        )
    what = f"{which} of inputs {shown(inputs) if isinstance(inputs, Tensor) else inputs}"
    raise ValueError(f"{type(model).__name__} cannot be run on {what}: {cause}")


@torch.no_grad()
def inputs_depend(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network's answers to the second and last input of a batch are others without the rest of it.

    So it is where the first axis is time and not the batch (``batch_first=False``), or where a norm takes the batch's
    own statistics: to take inputs out of such a batch would be to make others of them.

    Args:
        model: the network.
        inputs: of a batch.

    Returns:
        True where they depend on each other, or two alone cannot be run; False where nothing can be told.
    """
    count = len(inputs)
    if count < 3 or not inputs.divisible:
        return False
    # Not two neighbours: they may be a pair that belongs together.
    chosen = torch.tensor([1, count - 1])
    with evaluation_mode(model), same_buffers(model):
        whole = output_tensors(answer(model, inputs.clone(), "the first batch"))
        try:
            part = output_tensors(answer(model, inputs.at(chosen).clone(), "two inputs"))
        except ValueError:
            return True
    for one, other in zip(whole, part, strict=False) if len(whole) == len(part) else ():
        if not one.dim() or (one.shape == other.shape and torch.equal(one, other)):
            continue  # a loss, or a constant
        rows, rest = divmod(len(one), count)
        if rest or len(other) != 2 * rows:
            return True
        tolerance = 1e-3 if one.dtype.itemsize >= 4 else 5e-2
        difference = one.unflatten(0, (count, rows))[chosen].flatten(0, 1) - other
        if float(difference.norm()) > tolerance * float(other.norm()):
            return True
    return False


@torch.no_grad()
def probe_determinism(model: nn.Module, inputs: Inputs) -> Inputs:
    """Compare two answers of a network in evaluation mode to the same two inputs (all that cannot be divided).

    Returns:
        The inputs that were looked at: all where two alone cannot be run.

    Raises:
        ValueError: they differ, or the network cannot be run on such inputs.
    """
    if not len(inputs):
        raise ValueError(f"the first batch {inputs} holds no inputs: leave empty batches out")
    few = inputs.first(2)
    try:
        once = output_tensors(answer(model, few.clone(), "the first batch"))
    except ValueError as error:
        few = inputs.clone()
        try:
            once = output_tensors(answer(model, few.clone(), "the first batch"))
        except ValueError:
            raise error from None
    twice = output_tensors(answer(model, few.clone(), "the first batch"))
    same_shapes = [part.shape for part in once] == [part.shape for part in twice]
    pairs = list(zip(once, twice, strict=False))
    if same_shapes and all(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) for one, other in pairs):
        return few
    largest = max(float((one - other).abs().max()) for one, other in pairs if one.numel()) if same_shapes else None
    raise ValueError(
        f"{type(model).__name__} answers the same inputs differently ("
        + ("other shapes" if largest is None else f"largest difference {largest:.3g}")
        + ") although it is in evaluation mode: switch its randomness off"
    )
