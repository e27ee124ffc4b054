"""Stage evaluate: test errors, densities, layer errors, and Theorem 3.2's bound beside the measured output error."""

from __future__ import annotations

from typing import Any

from lobs.bounds import error_bound
from lobs.experiment.data import load_training_data
from lobs.experiment.evaluation import errors, output_error
from lobs.pipeline.calibration import calibration_split
from lobs.pipeline.files import read_json, write_json
from lobs.pipeline.progress import progress, waiting
from lobs.pipeline.stage import Folders, load_network, prepare, require_same_budget
from lobs.statistics import Statistics


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Measure the dense, the pruned and the retrained network and write the metrics.

    The bound is about the mean over the calibration images, so the output error is measured on just those.

    Args:
        config: what `STAGE_KEYS["evaluate"]` lists.

    Returns:
        The metrics written.
    """
    device = prepare(config)
    folders = Folders(config)
    pruning = require_same_budget(config, folders)
    dense, pruned, retrained = (
        load_network(config, folders.input(stage, "model.safetensors"), folders.command(stage)).to(device)
        for stage in ("train", "prune", "retrain")
    )
    statistics = Statistics.load(folders.input("collect", "statistics.safetensors"))
    layers = read_json(folders.input("prune", "layers.json"), folders.command("prune"))
    retraining = read_json(folders.input("retrain", "metrics.json"), folders.command("retrain"))
    train, measured = load_training_data(config["paths"]["data"], **config["data"])
    calibration = calibration_split(train, config["collect"])

    dense_errors, pruned_errors, retrained_errors = (
        errors(network, measured).named("test_error_percent")
        for network in progress("measuring")((dense, pruned, retrained))
    )
    with waiting("output error and bound"):
        distance, bound = output_error(dense, pruned, calibration), error_bound(dense, pruned, statistics).total
    metrics = {
        "experiment": config["name"],
        "method": config["method"]["name"],
        "seed": config["seed"],
        "data": measured.title,
        "dense": dense_errors,
        "pruned": {
            **pruned_errors,
            "density": pruning["density"],
            "output_error": distance,
            "bound": bound,
            "layers": layers,
        },
        "retrained": {
            **retrained_errors,
            "density": retraining["density"],
        },
    }
    write_json(folders.output("evaluate") / "metrics.json", metrics)
    return metrics
