"""What a batch of calibration data gives a network, and whether the network answers alike twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lobs.calibration.outputs import output_tensors


def network_input(batch: object, model: nn.Module) -> Tensor:
    """The input tensor of a batch, on the network's device: a copy, since the network may change it in place.

    Args:
        batch: a tensor, or a tuple or list that starts with one.
        model: its first parameter's device is taken.

    Returns:
        The input.

    Raises:
        TypeError: the batch is neither a tensor nor a tuple or list that starts with one.
    """
    inputs = raw_input(batch)
    parameter = next(model.parameters(), None)
    moved = inputs if parameter is None else inputs.to(parameter.device, non_blocking=True)
    moved = moved.detach()  # whatever made the inputs is not part of the network
    return moved.clone() if moved.data_ptr() == inputs.data_ptr() or moved.is_inference() else moved


def raw_input(batch: object) -> Tensor:
    """The input tensor of a batch, as it lies there.

    Args:
        batch: a tensor, or a tuple or list that starts with one.

    Returns:
        The input.

    Raises:
        TypeError: the batch is neither.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch must be a tensor, or a tuple or list that starts with one; got {type(batch).__name__}"
        )
    if not inputs.dim():
        raise TypeError("a batch must hold inputs along its first axis; got a tensor without any axis")
    return inputs


def network_target(batch: object, inputs: Tensor) -> Tensor:
    """The target of a batch of ``(input, target)``, on the input's device.

    Args:
        batch: a tuple or list.
        inputs: its input.

    Returns:
        The target.

    Raises:
        TypeError: the batch has none.
    """
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
        )


def answer(model: nn.Module, inputs: Tensor, which: str) -> object:
    """A network's outputs; where it cannot be run on such inputs, a sentence says so.

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
        return model(inputs)
    except torch.OutOfMemoryError:  # not for want of the right inputs
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        cause = " ".join(str(error).split())
    what = f"{which} of inputs {tuple(inputs.shape)} {inputs.dtype}"
    raise ValueError(f"{type(model).__name__} cannot be run on {what}: {cause}")


@torch.no_grad()
def probe_determinism(model: nn.Module, inputs: Tensor) -> None:
    """Compare two answers of a network in evaluation mode to the same two inputs.

    Raises:
        ValueError: they differ, or the network cannot be run on such inputs.
    """
    sample = inputs[:2]
    if not len(sample):
        raise ValueError(f"the first batch {tuple(sample.shape)} holds no inputs: leave empty batches out")
    once, twice = (output_tensors(answer(model, sample.clone(), "the first batch")) for _ in range(2))
    same_shapes = [part.shape for part in once] == [part.shape for part in twice]
    pairs = list(zip(once, twice, strict=False))
    if same_shapes and all(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) for one, other in pairs):
        return
    largest = max(float((one - other).abs().max()) for one, other in pairs if one.numel()) if same_shapes else None
    raise ValueError(
        f"{type(model).__name__} answers the same inputs differently ("
        + ("other shapes" if largest is None else f"largest difference {largest:.3g}")
        + ") although it is in evaluation mode: switch its randomness off"
    )
