"""The calibration pass that `collect` makes once, and a retraining in rounds after every round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lobs.base.distributed import rank_and_size
from lobs.calibration.batches import HELD_OUT, MOST_HELD_OUT
from lobs.calibration.collect import collect_statistics
from lobs.calibration.inputs import network_input
from lobs.calibration.loss_hessian import LossCurvature
from lobs.calibration.statistics import Statistics
from lobs.registry import METHODS
from lobs_paper.config.choices import LOSSES
from lobs_paper.config.requested import compares, runs_network
from lobs_paper.data.splits import Batches, Split


def calibration_split(train: Split, collect: Mapping[str, Any]) -> Split:
    """The calibration images as key `collect` describes them: the first of the training images, in all their views.

    Args:
        train: the training images.
        collect: the key's values.

    Returns:
        The images.
    """
    return train.part(0, collect["images"]).with_views(collect["augmented_copies"])


def calibration_batches(train: Split, collect: Mapping[str, Any], repeated: bool = False) -> Batches:
    """The calibration images in batches.

    Args:
        train: the training images.
        collect: the key's values.
        repeated: for passes that are made once per layer, round or network that is measured, and for the loss's
            curvature: at most `collect.images_per_pass` of them, each as it is.

    Returns:
        The batches.
    """
    images, views = collect["images"], collect["augmented_copies"]
    if repeated:
        images, views = min(images or len(train), collect["images_per_pass"] or len(train)), 1
    return calibration_split(train, {"images": images, "augmented_copies": views}).batches(collect["batch_size"])


def learned_and_held_out(train: Split, collect: Mapping[str, Any], most: int | None = None) -> tuple[Batches, Batches]:
    """The calibration images in all their views but for the last sixth, and that, each as it is.

    For methods that compare networks or stop a refit by images that neither statistics nor weights have seen.

    Args:
        train: the training images.
        collect: the key's values.
        most: of the images; None: all of them.

    Returns:
        Batches of both.
    """
    images = min(collect["images"] or len(train), most or len(train), len(train))
    first = images - min(images // HELD_OUT, MOST_HELD_OUT)
    learned = calibration_split(train, {**collect, "images": first}).batches(collect["batch_size"])
    return learned, train.part(first, images).batches(collect["batch_size"])


def inputs_for_pruning(
    method: Mapping[str, Any], train: Split, collect: Mapping[str, Any]
) -> tuple[Batches | None, Batches | None]:
    """What a method runs the network on, beyond the statistics of `collect`.

    Args:
        method: group `method`.
        train: the training images.
        collect: the key's values.

    Returns:
        Batches, and those held out by methods that compare, whose statistics must not have seen them; None where the
        method needs none.
    """
    if compares(method):
        return learned_and_held_out(train, collect, method["images"])
    return (calibration_batches(train, collect, repeated=True), None) if runs_network(method) else (None, None)


def own_share(batches: Batches) -> Batches:
    """Of the batches, those that this process takes.

    Args:
        batches: all of them.

    Returns:
        Every N-th, where there are N processes.

    Raises:
        ValueError: there are not enough for all processes.
    """
    rank, size = rank_and_size()
    if len(batches) < size:
        raise ValueError(
            f"devices={size} is not accepted here: {len(batches.split)} calibration images in batches of "
            f"collect.batch_size={batches.size} are {len(batches)} batches, and every process needs one"
        )
    return batches.share(rank, size)


def calibrate(
    network: nn.Module,
    train: Split,
    collect: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None = None,
    solver: str | None = None,
    memory: float | None = None,
    folder: Path | None = None,
) -> Statistics:
    """Statistics of a network as key `collect` describes them, summed over the processes where there are several.

    Args:
        network: on the device to compute on.
        train: the training images.
        collect: the key's values.
        progress: wraps the batches.
        solver: a further pass for this one alone; None: the pass that serves all, without the loss's curvature
            (`with_curvature`).
        memory: ceiling in bytes, see `lobs.collect_statistics`.
        folder: for finished layers, likewise.

    Returns:
        The statistics of every layer.
    """
    batches = own_share(calibration_batches(train, collect, repeated=solver is not None))
    needs = ("inputs_sample",) if solver is None else METHODS[solver].needs
    return collect_statistics(
        network,
        batches,
        progress=progress,
        loss=collect["loss"] if "loss_curvature" in needs else None,
        keep_samples=collect["kept_samples"] if "inputs_sample" in needs else 0,
        distributed=rank_and_size()[1] > 1,
        memory=memory,
        folder=folder,
    )


def with_curvature(
    network: nn.Module,
    statistics: Statistics,
    train: Split,
    collect: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Statistics:
    """Add the curvature of the training loss, `collect.loss`, over the first `collect.images_per_pass`.

    Stage prune asks for it where its solver needs it (OBD): no other method reads it, and over all images it takes
    longer than all other statistics together.

    Args:
        network: dense, on the device to compute on.
        statistics: of its layers.
        train: the training images.
        collect: the key's values.
        progress: wraps the batches.

    Returns:
        The same statistics with `loss_curvature`.

    Raises:
        ValueError: no loss is given, or BackPACK cannot follow the network.
    """
    if collect["loss"] is None:
        accepted = " or ".join(LOSSES)
        raise ValueError(
            f"collect.loss=null is not accepted for this method, which needs the loss trained with: {accepted}"
        )
    curvature = LossCurvature(network, collect["loss"], list(statistics))
    batches = calibration_batches(train, collect, repeated=True)
    for batch in batches if progress is None else progress(batches):
        inputs = network_input(batch, network)
        curvature.add(inputs.alone, batch[1].to(inputs.device))
    diagonals = {name: diagonal.cpu() for name, diagonal in curvature.result().items()}
    curved = {name: replace(layer, loss_curvature=diagonals[name]) for name, layer in statistics.items()}
    return Statistics(curved, statistics.calls)
