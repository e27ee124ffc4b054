"""The calibration pass that `collect` makes once, and a retraining in rounds after every round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lobs.experiment.data import Batches, Split
from lobs.registry import METHODS
from lobs.statistics import Statistics, collect_statistics


def calibration_batches(train: Split, collect: Mapping[str, Any], repeated: bool = False) -> Batches:
    """The calibration images as key `collect` describes them: the first of the training images.

    Args:
        train: the training images.
        collect: the key's values.
        repeated: for passes that are made once per layer or round: at most `collect.repeated_images` of them.

    Returns:
        The batches.
    """
    images = collect["images"]
    if repeated and collect["repeated_images"] is not None:
        images = min(images or len(train), collect["repeated_images"])
    return train.part(0, images).batches(collect["batch_size"])


def calibrate(
    network: nn.Module,
    train: Split,
    collect: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None = None,
    solver: str | None = None,
) -> Statistics:
    """Statistics of a network as key `collect` describes them.

    Args:
        network: on the device to compute on.
        train: the training images.
        collect: the key's values.
        progress: wraps the batches.
        solver: a further pass for this one alone, without what costs time and it does not need.

    Returns:
        The statistics of every layer.
    """
    batches = calibration_batches(train, collect, repeated=solver is not None)
    needs = ("loss_curvature", "inputs_sample") if solver is None else METHODS[solver].needs
    return collect_statistics(
        network,
        batches,
        progress=progress,
        loss=collect["loss"] if "loss_curvature" in needs else None,
        keep_samples=collect["samples"] if "inputs_sample" in needs else 0,
    )
