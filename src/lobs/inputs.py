"""What a batch of calibration data gives a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network_input(batch: object, model: nn.Module) -> Tensor:
    """The input tensor of a batch, on the network's device.

    Args:
        batch: a tensor, or a tuple or list that starts with one.
        model: its first parameter's device is taken.

    Returns:
        The input.

    Raises:
        TypeError: the batch is neither a tensor nor a tuple or list that starts with one.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch must be a tensor, or a tuple or list that starts with one; got {type(batch).__name__}"
        )
    parameter = next(model.parameters(), None)
    return inputs if parameter is None else inputs.to(parameter.device, non_blocking=True)


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


@torch.no_grad()
def probe_determinism(model: nn.Module, inputs: Tensor) -> None:
    """Compare two answers of a network in evaluation mode to the same two inputs.

    Raises:
        ValueError: they differ.
    """
    sample = inputs[:2]
    once, twice = model(sample), model(sample)
    if isinstance(once, Tensor) and not torch.equal(torch.nan_to_num(once), torch.nan_to_num(twice)):
        raise ValueError(
            f"{type(model).__name__} answers the same inputs differently (largest difference "
            f"{(once - twice).abs().max():.3g}) although it is in evaluation mode: switch its randomness off"
        )
