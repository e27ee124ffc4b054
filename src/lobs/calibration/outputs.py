"""What a network's outputs hold, and which distance between two networks' outputs fits them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import cast

import torch
from torch import Tensor

from lobs.calibration.calling import called

UNCOMPARABLE = (
    "outputs whose number depends on the data cannot be compared: name a part that does not with output=, or give "
    "call=lambda model, batch: model.backbone(...), say"
)


def output_tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among a network's outputs, in their order.

    Args:
        outputs: a tensor, or tensors in tuples, lists, mappings and dataclasses, nested at will.

    Returns:
        The tensors; none where the outputs hold nothing but other things.
    """
    if isinstance(outputs, Tensor):
        dense = outputs if outputs.layout == torch.strided else outputs.to_dense()
        return [dense] if dense.is_floating_point() else []
    if isinstance(outputs, Mapping):
        parts: Iterable[object] = outputs.values()
    elif isinstance(outputs, (tuple, list)):
        parts = outputs
    elif is_dataclass(outputs):
        parts = (getattr(outputs, entry.name) for entry in fields(outputs))
    else:
        return []
    return [tensor for part in parts for tensor in output_tensors(part)]


def fitting_distance(outputs: object, batch: object) -> str:
    """The distance that fits a network's outputs: ``kl`` for class logits, else ``relative``.

    Class logits are one tensor ``[images, classes]`` with two or more columns that are not all alike, unless the batch
    brings a target of the same shape in floating point: then it is a regression.

    Args:
        outputs: of the network.
        batch: they belong to.

    Returns:
        ``kl`` or ``relative``.

    Raises:
        ValueError: the outputs hold no floating-point tensor.
    """
    parts = output_tensors(outputs)
    if not parts:
        raise ValueError(
            f"the network's outputs hold no floating-point tensor to compare, got {type(outputs).__name__}: name "
            f"them with output= (a function of the outputs, a key or an attribute)"
        )
    logits = len(parts) == 1 and parts[0].dim() == 2 and parts[0].shape[1] > 1
    target = called(batch).target()
    regression = isinstance(target, Tensor) and target.is_floating_point() and target.shape == parts[0].shape
    # Soft labels are probabilities: of one class each, or of several that add up to one.
    if regression and logits:
        values = cast("Tensor", target).double()
        regression = not (bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all()))
    # One number repeated: no softmax changes with it.
    alike = logits and bool((parts[0] == parts[0][:, :1]).all())
    return "kl" if logits and not regression and not alike else "relative"


def class_logits(outputs: object) -> Tensor:
    """The network's outputs, once they are known to be ``[images, classes]``.

    Args:
        outputs: whatever the network returned; a single tensor in a tuple, dict or dataclass will do.

    Returns:
        The tensor.

    Raises:
        ValueError: they have another shape.
    """
    parts = output_tensors(outputs)
    if len(parts) != 1 or parts[0].dim() != 2:
        shapes = ", ".join(f"a tensor of shape {tuple(part.shape)}" for part in parts) or type(outputs).__name__
        raise ValueError(f"the network's outputs must be class logits [images, classes], got {shapes}")
    return parts[0]


def per_input(values: Tensor, inputs: int) -> Tensor:
    """Sums of every input; what has no axis of inputs is shared out evenly.

    Args:
        values: ``[inputs, ...]``, or of any other shape.
        inputs: how many there are.

    Returns:
        ``[inputs]``.
    """
    if values.dim() and len(values) == inputs:
        return values.reshape(inputs, -1).sum(1)
    return values.sum().div(inputs).expand(inputs)


def spreads(outputs: Sequence[Sequence[Tensor]], images: int) -> list[float]:
    """What a squared distance of each output tensor is compared to: ``mean ||y - mean y||^2`` over images.

    Of a single image, its own squared norm.

    Args:
        outputs: of every batch, tensor by tensor.
        images: in all batches.

    Returns:
        One number per tensor; 0 for one that is the same for all images.

    Raises:
        ValueError: all of them are.
    """
    if len({len(batch) for batch in outputs}) > 1:
        raise ValueError(f"the network's outputs hold other numbers of tensors for other batches: {UNCOMPARABLE}")
    result = []
    for parts in zip(*([part.nan_to_num(0.0, 0.0, 0.0) for part in batch] for batch in outputs), strict=True):
        power = sum(float(part.square().sum()) for part in parts) / images
        along = (
            images > 1 and len({part.shape[1:] for part in parts if part.dim()}) == 1 and all(p.dim() for p in parts)
        )
        mean = sum(part.sum(0) for part in parts) / sum(len(part) for part in parts) if along else None
        spread = sum(float((part - mean).square().sum()) for part in parts) / images if mean is not None else power
        result.append(spread if spread > 1e-12 * power else 0.0)
    if not any(result):
        raise ValueError(
            "the network's outputs are the same for all calibration inputs, so that nothing can be measured by them: "
            "give other batches or another output=, or share the budget out with allocation='relative' or 'uniform'"
        )
    return result
