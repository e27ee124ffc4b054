"""Stage collect: stream the calibration images through the dense network into per-layer statistics."""

from __future__ import annotations

from typing import Any

from lobs.calibration.statistics import LayerStatistics
from lobs_paper.data.splits import load_training_data, split_file
from lobs_paper.files import write_json
from lobs_paper.progress import first_process, progress
from lobs_paper.stages.calibration import calibrate, calibration_batches, calibration_split, own_share
from lobs_paper.stages.devices import on_devices
from lobs_paper.stages.environment import ceiling_bytes, prepare
from lobs_paper.stages.folders import Folders, writable
from lobs_paper.stages.network_files import load_network
from lobs_paper.stages.partial_results import forget, partial_folder
from lobs_paper.stages.stopwatch import Stopwatch


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Collect the statistics of every layer and write them with a digest of each.

    Args:
        config: what `STAGE_KEYS["collect"]` lists.

    Returns:
        The metrics written.
    """
    return on_devices(collect, config)


def collect(config: dict[str, Any]) -> dict[str, Any]:
    """The work of one process; layers that an interrupted run has finished are not collected again."""
    device = prepare(config)
    folders = Folders(config)
    trained = folders.input("train", "model.safetensors")
    network = load_network(config, trained, folders.command("train"))
    writable(folders.output("collect"))
    train, _ = load_training_data(config["folders"]["data"], **config["data"])
    images = len(calibration_split(train, config["collect"]))

    watch = Stopwatch()
    bar = progress("calibrating")
    batches = len(own_share(calibration_batches(train, config["collect"])))
    images_file = split_file(config["folders"]["data"], config["data"]["name"], "train")
    partial = partial_folder(folders.output("collect"), config, [trained, images_file])
    statistics = calibrate(
        network.to(device),
        train,
        config["collect"],
        progress=lambda items: bar(items, total=batches),
        memory=ceiling_bytes(config),
        folder=partial,
    )
    if not first_process():
        return {}
    metrics = {
        "experiment": config["name"],
        "seed": config["seed"],
        "data": train.title,
        "images": images,
        "samples": config["collect"]["kept_samples"],
        "layers": [_digest(name, layer) for name, layer in statistics.items()],
    }
    with folders.result("collect", metrics) as folder:
        statistics.save(folder / "statistics.safetensors")
        write_json(folder / "timings.json", watch.result(config, device))
    forget(partial)
    return metrics


def _digest(name: str, layer: LayerStatistics) -> dict[str, Any]:
    diagonal = layer.second_moment.diagonal(dim1=-2, dim2=-1)
    return {
        "name": name,
        "samples": layer.samples,
        "features": layer.features,
        "dead_inputs": int((diagonal == 0).sum()),
        "mean_diagonal": float(diagonal.mean()),
        "zero_fraction": None if layer.zero_fraction is None else float(layer.zero_fraction.mean()),
    }
