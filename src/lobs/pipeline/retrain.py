"""Stage retrain: light retraining with fixed masks, and further rounds of pruning where the method has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lobs.experiment.data import Split, load_training_data
from lobs.pipeline.calibration import calibrate
from lobs.pipeline.files import load_tensors, write_csv, write_json
from lobs.pipeline.stage import Folders, Stopwatch, load_network, prepare, require_same_budget, save_network
from lobs.pruning import prune
from lobs.solvers import make


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Retrain the pruned network and write it with its metrics and its whole error curve.

    Args:
        config: what `STAGE_KEYS["retrain"]` lists.

    Returns:
        The metrics written.
    """
    device = prepare(config)
    folders = Folders(config)
    before = require_same_budget(config, folders)
    model, masks = (folders.input("prune", f"{file}.safetensors") for file in ("model", "masks"))
    network = load_network(config, model, folders.command("prune"))
    train, measured = load_training_data(config["paths"]["data"], **config["data"])

    from lobs.experiment.retraining import retrain
    from lobs.experiment.training import Recipe

    watch = Stopwatch()
    recipe = dict(config["retrain"])
    measure_every = recipe.pop("measure_every")
    rounds = config["method"]["rounds"]
    result = retrain(
        network,
        load_tensors(masks, folders.command("prune")),
        train,
        measured,
        Recipe(**recipe),
        seed=config["seed"],
        device=device.type,
        measure_every=measure_every,
        further=[*rounds[1:], config["density"]] if rounds else [],
        prune=partial(prune_again, config=config, train=train, device=device) if rounds else None,
    )
    last = result.rounds[-1]
    metrics = {
        "experiment": config["name"],
        "method": config["method"]["name"],
        "seed": config["seed"],
        "error_before_percent": before["error_before_percent"],
        "error_after_pruning_percent": last["error_after_pruning_percent"],
        "error_after_retraining_percent": last["error_after_retraining_percent"],
        "iterations": sum(entry["iterations"] for entry in result.rounds),
        "iterations_to_original": result.iterations_to(before["error_before_percent"]),
        "density": last["density"],
        "masks_exact": result.masks_exact,
        "rounds": result.rounds,
    }
    folder = folders.output("retrain")
    save_network(config, folder / "model.safetensors", result.network)
    write_csv(folder / "curve.csv", result.curve, ["round", "iteration", "train_loss", "test_error_percent"])
    write_json(folder / "timings.json", watch.result(config, device))
    write_json(folder / "metrics.json", metrics)
    return metrics


def prune_again(
    network: nn.Module, density: float, config: dict[str, Any], train: Split, device: torch.device
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Prune a retrained network further, from its own statistics.

    Args:
        network: on the CPU.
        density: to prune to.
        config: of the stage.
        train: the images to calibrate on.
        device: where to compute.

    Returns:
        The pruned network and its masks, on the CPU.
    """
    method = config["method"]
    network = network.to(device)
    result = prune(
        network,
        calibrate(network, train, config["collect"]),
        make(method["solver"], **method["options"]),
        density=density,
        allocation=method["allocation"],
        in_place=True,
    )
    return result.model.cpu(), {name: mask.cpu() for name, mask in result.masks.items()}
