"""Stage evaluate: test errors, densities, layer errors, and Theorem 3.2's bound beside the measured output error.

Also what the pruned and the retrained network take on disk, as they are and compacted; how fast they are is a duration
and goes to timings.json.
"""

from __future__ import annotations

from typing import Any

from lobs.bounds import error_bound
from lobs.calibration.statistics import Statistics
from lobs_paper.data.splits import load_training_data
from lobs_paper.files import read_json, write_json
from lobs_paper.progress import progress, waiting
from lobs_paper.stages.calibration import calibration_split
from lobs_paper.stages.environment import prepare
from lobs_paper.stages.folders import Folders
from lobs_paper.stages.network_files import load_network
from lobs_paper.stages.same_budget import require_same_budget
from lobs_paper.stages.size_and_latency import latency, storage
from lobs_paper.stages.stopwatch import Stopwatch
from lobs_paper.training.evaluation import batch_size, errors, output_error

# Images in the larger of the two batches that are timed.
TIMED_IMAGES = 256


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Measure the dense, the pruned and the retrained network and write the metrics.

    The bound is about the mean over the calibration images, so the output error is measured on just those.

    Args:
        config: what `STAGE_KEYS["evaluate"]` lists.

    Returns:
        The metrics written.
    """
    device = prepare(config)
    clock = Stopwatch()
    folders = Folders(config)
    pruning = require_same_budget(config, folders, "density")
    dense, pruned, retrained = (
        load_network(config, folders.input(stage, "model.safetensors"), folders.command(stage)).to(device)
        for stage in ("train", "prune", "retrain")
    )
    statistics = Statistics.load(folders.input("collect", "statistics.safetensors"))
    layers = read_json(folders.input("prune", "layers.json"), folders.command("prune"), list)
    retraining = folders.metrics("retrain", "density")
    train, measured = load_training_data(config["folders"]["data"], **config["data"])
    calibration = calibration_split(train, config["collect"])

    dense_errors, pruned_errors, retrained_errors = (
        errors(network, measured).named("test_error_percent")
        for network in progress("measuring")((dense, pruned, retrained))
    )
    with waiting("output error and bound"):
        distance, bound = output_error(dense, pruned, calibration), error_bound(dense, pruned, statistics)
    images = min(batch_size(measured, TIMED_IMAGES), len(measured))
    inputs = measured[:images][0].to(device)
    taken, latencies = {}, []
    for name, network in progress("compacting")((("pruned", pruned), ("retrained", retrained))):
        taken[name], smaller = storage(network, inputs)
        if smaller is not None:
            latencies += [{"network": name, **row} for row in latency(network, smaller, inputs)]
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
            "bound": bound.total,
            "bound_caveat": bound.caveat,
            "storage": taken["pruned"],
            "layers": layers,
        },
        "retrained": {
            **retrained_errors,
            "density": retraining["density"],
            "storage": taken["retrained"],
        },
    }
    with folders.result("evaluate", metrics) as folder:
        write_json(folder / "timings.json", {**clock.result(config, device), "latency": latencies})
    return metrics
