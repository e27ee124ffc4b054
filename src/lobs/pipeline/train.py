"""Stage train: the dense network."""

from __future__ import annotations

from math import ceil
from typing import Any

from lobs.experiment.data import load_training_data
from lobs.pipeline.devices import on_devices
from lobs.pipeline.files import write_csv, write_json
from lobs.pipeline.progress import first_process
from lobs.pipeline.stage import Folders, Stopwatch, prepare, save_network


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Train the network and write it with its metrics and its error curve.

    Args:
        config: what `STAGE_KEYS["train"]` lists.

    Returns:
        The metrics written.
    """
    return on_devices(train_network, config)


def train_network(config: dict[str, Any]) -> dict[str, Any]:
    """The work of one process."""
    device = prepare(config)
    train, measured = load_training_data(config["paths"]["data"], **config["data"])

    from lobs.experiment.evaluation import errors
    from lobs.experiment.networks import build
    from lobs.experiment.training import Recipe, fit

    watch = Stopwatch()
    network = build(config["model"])
    recipe = dict(config["train"])
    epochs = recipe.pop("epochs")
    epoch = ceil(len(train) / recipe["batch_size"])
    result = fit(
        network,
        train,
        measured,
        Recipe(**recipe, iterations=epochs * epoch),
        seed=config["seed"],
        device=device.type,
        measure_every=epoch,
    )
    if not first_process():
        return {}
    metrics = {
        "experiment": config["name"],
        "seed": config["seed"],
        "data": train.title,
        "measured_on": "validation" if config["data"]["validation"] else "test",
        **errors(network, measured).named("test_error_percent"),
        "test_error_percent": result.error_percent,
        **errors(network, train).named("train_error_percent"),
        "epochs": epochs,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": device.type,
    }
    folder = Folders(config).output("train")
    save_network(config, folder / "model.safetensors", network)
    curve = [{"epoch": point.pop("iteration") // epoch, **point} for point in result.points]
    write_csv(folder / "curve.csv", curve, ["epoch", "train_loss", "test_error_percent"])
    write_json(folder / "timings.json", watch.result(config, device))
    write_json(folder / "metrics.json", metrics)
    return metrics
