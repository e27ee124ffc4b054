"""The calibration pass that `collect` makes once, and a retraining in rounds after every round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lobs.experiment.data import Split
from lobs.statistics import Statistics, collect_statistics


def calibrate(
    network: nn.Module,
    train: Split,
    collect: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Statistics:
    """Statistics of a network as key `collect` describes them.

    Args:
        network: on the device to compute on.
        train: the training images; the calibration images are its first ones.
        collect: the key's values.
        progress: wraps the batches.

    Returns:
        The statistics of every layer.
    """
    return collect_statistics(
        network,
        train.part(0, collect["images"]).batches(collect["batch_size"]),
        progress=progress,
        loss=collect["loss"],
        keep_samples=collect["samples"],
    )
