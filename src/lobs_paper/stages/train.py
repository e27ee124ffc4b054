"""Stage train: the dense network, trained here or loaded with somebody else's weights."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.modes import without_training
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import write_csv, write_json
from lobs_paper.networks.pretrained import load_weights, origin
from lobs_paper.progress import first_process
from lobs_paper.stages.devices import on_devices
from lobs_paper.stages.environment import prepare
from lobs_paper.stages.faults import is_user_error
from lobs_paper.stages.folders import Folders, writable
from lobs_paper.stages.network_files import DIVERGED, ORIGIN, check_finite, save_network
from lobs_paper.stages.stopwatch import Stopwatch


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Train (or load) the network and write it with its metrics and its error curve.

    Args:
        config: what `STAGE_KEYS["train"]` lists.

    Returns:
        The metrics written.
    """
    return on_devices(train_network, config)


def train_network(config: dict[str, Any]) -> dict[str, Any]:
    """The work of one process."""
    device = prepare(config)
    folders = Folders(config)
    train, measured = load_training_data(config["folders"]["data"], **config["data"])

    from lobs_paper.networks.build import build
    from lobs_paper.training.evaluation import errors

    watch = Stopwatch()
    network = build(config["model"])
    check_fits(network, train)
    pretrained = config["model"].get("weights") is not None
    if pretrained:  # somebody else's, in the place of training
        load_weights(network, config["model"])
        check_finite(network, f"model.weights={config['model']['weights']} cannot be used")
    check_answers(network, train)
    writable(folders.output("train"))
    if pretrained:
        curve = first_point(network, measured, device)
    else:
        curve = fit_network(network, train, measured, config, device)
        check_finite(network, f"{DIVERGED} train.learning_rate")
    if not first_process():
        return {}
    # Somebody else's training images may be many; as many as are measured on tell enough.
    seen = train.part(0, len(measured)) if pretrained else train
    metrics = {
        "experiment": config["name"],
        "seed": config["seed"],
        "data": train.title,
        "measured_on": "validation" if config["data"]["holdout"] else "test",
        **errors(network, measured).named("test_error_percent"),
        "test_error_percent": curve[-1]["test_error_percent"],
        **errors(network, seen).named("train_error_percent"),
        "epochs": curve[-1]["epoch"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": device.type,
    }
    marks = {ORIGIN: origin(config["model"])} if pretrained else {}
    with folders.result("train", metrics) as folder:
        save_network(config, folder / "model.safetensors", network, marks)
        write_csv(folder / "curve.csv", curve, ["epoch", "train_loss", "test_error_percent"])
        write_json(folder / "timings.json", watch.result(config, device))
    return metrics


def check_fits(network: nn.Module, train: Split) -> None:
    """Try a network on two images before it is trained or given weights.

    Args:
        network: in the end in the mode that it was in.
        train: the images to learn from.

    Raises:
        ValueError: it does not take such images, has fewer classes than they, or its outputs are no logits.
    """
    from lobs_paper.training.evaluation import error_percent

    inputs, _ = train[:2]
    try:
        with torch.no_grad(), without_training(network):
            outputs = network(inputs)
    except Exception as error:  # whatever its layers say
        if is_user_error(error):
            raise
        cause = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model._target_ does not take inputs of {list(inputs.shape)}, as data={train.title} gives them: {cause}"
        ) from error
    empty = [name for name, weight in network.named_parameters() if not weight.numel()]
    if empty:
        raise ValueError(f"model._target_ with these arguments has no weights in {empty[0]!r}: sizes are 1 or more")
    # Labels per pixel may have a number beside the classes for what does not count.
    classes = int(train.labels.max()) + 1 if train.labels.dim() == 1 else 1
    shape = list(outputs.shape) if isinstance(outputs, Tensor) else [len(inputs), classes]
    if len(shape) < 2 or shape[0] != len(inputs) or shape[1] < classes:
        raise ValueError(
            f"model._target_ answers {len(inputs)} images by {shape}, and data={train.title} "
            f"has {classes} classes: expected are logits, [images, classes, ...]; model.output=... picks them out"
        )
    if not list(network.parameters()):
        raise ValueError("model._target_ has no weights")
    error_percent(network, train.part(0, 2))  # says what is missing where the outputs are no logits of these labels


def check_answers(network: nn.Module, train: Split) -> None:
    """Refuse a network, with its weights, whose outputs for two images have no largest one.

    Raises:
        ValueError: they are NaN or infinite.
    """
    with torch.no_grad(), without_training(network):
        outputs = network(train[:2][0])
    if not outputs.amax(dim=1).isfinite().all():
        raise ValueError("the network's outputs are NaN or infinite: the largest of them is no answer")


def fit_network(
    network: nn.Module, train: Split, measured: Split, config: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """Train a network in place by the recipe `train`.

    Args:
        network: freshly initialised.
        train: the images to learn from.
        measured: the images to measure the curve on.
        config: of the stage.
        device: where to compute.

    Returns:
        The error curve, a point per epoch.
    """
    from lobs_paper.training.fit import Recipe, Training, fit

    recipe = dict(config["train"])
    epochs, epoch = recipe.pop("epochs"), ceil(len(train) / recipe["batch_size"])
    whole = Recipe(**recipe, iterations=epochs * epoch)
    result = fit(network, Training(train, measured, whole, config["seed"], measure_every=epoch, device=device.type))
    return [{"epoch": point.pop("iteration") // epoch, **point} for point in result.points]


def first_point(network: nn.Module, measured: Split, device: torch.device) -> list[dict[str, Any]]:
    """The error curve of a network that is not trained here: one point, epoch 0.

    Args:
        network: moved to the device, where it stays.
        measured: the images to measure the error on.
        device: where to compute.

    Returns:
        The curve.
    """
    from lobs_paper.training.evaluation import error_percent

    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [{"epoch": 0, "train_loss": None, "test_error_percent": error_percent(network, measured)}]
