"""Stage retrain: training with fixed masks, further rounds of pruning, or surgery, as the method has it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lobs.layers.network import prunable_layers
from lobs.pruning import prune
from lobs.registry import METHODS
from lobs.solvers import make
from lobs_paper.config.requested import excluded
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import load_tensors, save_tensors, write_csv, write_json
from lobs_paper.progress import first_process
from lobs_paper.stages.calibration import calibrate, inputs_for_pruning
from lobs_paper.stages.devices import on_devices
from lobs_paper.stages.environment import prepare
from lobs_paper.stages.folders import Folders, writable
from lobs_paper.stages.network_files import DIVERGED, check_finite, load_network, save_network
from lobs_paper.stages.partial_results import forget, partial_folder
from lobs_paper.stages.same_budget import require_same_budget
from lobs_paper.stages.stopwatch import Stopwatch
from lobs_paper.training.evaluation import errors

if TYPE_CHECKING:
    from lobs_paper.training.fit import Training
    from lobs_paper.training.retraining import Retrained


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Retrain the pruned network and write it with its masks, its metrics and its whole error curve.

    Args:
        config: what `STAGE_KEYS["retrain"]` lists.

    Returns:
        The metrics written.
    """
    return on_devices(retrain_network, config)


def retrain_network(config: dict[str, Any]) -> dict[str, Any]:
    """The work of one process."""
    device = prepare(config)
    folders = Folders(config)
    before = require_same_budget(config, folders, "error_before_percent")
    splits = load_training_data(config["folders"]["data"], **config["data"])

    watch = Stopwatch()
    learn = operate if config["method"]["allocation"] == "dns" else retrain_pruned
    writable(folders.output("retrain"))
    result = learn(config, folders, *splits, device)
    check_finite(result.network, f"{DIVERGED} retrain.learning_rate")
    if not first_process():
        return {}
    last = result.rounds[-1]
    metrics = {
        "experiment": config["name"],
        "method": config["method"]["name"],
        "seed": config["seed"],
        "data": splits[1].title,
        "error_before_percent": before["error_before_percent"],
        "error_after_pruning_percent": last["error_after_pruning_percent"],
        **errors(result.network, splits[1]).named("error_after_retraining_percent"),
        "error_after_retraining_percent": last["error_after_retraining_percent"],
        "iterations": sum(entry["iterations"] for entry in result.rounds),
        "iterations_to_original": result.iterations_to(before["error_before_percent"]),
        "density": last["density"],
        "masks_exact": result.masks_exact,
        "recipe": {key: value for key, value in config["retrain"].items() if key != "measure_every"},
        "rounds": result.rounds,
    }
    with folders.result("retrain", metrics) as folder:
        save_network(config, folder / "model.safetensors", result.network)
        save_tensors(folder / "masks.safetensors", result.masks)
        write_csv(folder / "curve.csv", result.curve, ["round", "iteration", "train_loss", "test_error_percent"])
        write_json(folder / "timings.json", watch.result(config, device))
    forget(_partial(config, folders))
    return metrics


def _partial(config: dict[str, Any], folders: Folders) -> Path:
    """Where a stopped retraining leaves what it goes on from."""
    inputs = [folders.input(stage, "model.safetensors") for stage in ("train", "prune")]
    return partial_folder(folders.output("retrain"), config, inputs)


def retrain_pruned(
    config: dict[str, Any], folders: Folders, train: Split, measured: Split, device: torch.device
) -> Retrained:
    """Retrain what stage prune left, in as many rounds as the method has.

    Args:
        config: of the stage.
        folders: of the stage.
        train: the images to learn from.
        measured: the images to measure the curve on.
        device: where to compute.

    Returns:
        The retrained network and its history.
    """
    from lobs_paper.training.lwc import Connections
    from lobs_paper.training.retraining import retrain

    made_by = folders.command("prune")
    network = load_network(config, folders.input("prune", "model.safetensors"), made_by)
    masks = load_masks(folders.input("prune", "masks.safetensors"), network, made_by)
    method, rounds = config["method"], config["method"]["rounds"]
    prune_on: Any = partial(prune_again, config=config, train=train, device=device)
    if method["allocation"] == "lwc":
        prune_on = Connections(network, method["threshold_scale"])
        prune_on.adjust_dropout(network, masks)
    further = [*rounds[1:], config["density"]] if rounds else []
    training = _training(config, folders, (train, measured), device)
    if config["retrain"]["targets"] == "dense":
        dense = load_network(config, folders.input("train", "model.safetensors"), folders.command("train"))
        training = replace(training, teacher=dense)
    return retrain(network, masks, training, further, prune_on)


def load_masks(path: Path, network: nn.Module, made_by: str) -> dict[str, Tensor]:
    """The masks of a pruned network.

    Args:
        path: of their file.
        network: the pruned network.
        made_by: the command that writes the file.

    Returns:
        Masks by layer name, True where a weight is kept.

    Raises:
        ValueError: the file has none, or one that belongs to no layer of the network or not to its weights.
    """
    masks, layers = load_tensors(path, made_by), prunable_layers(network)
    for name, mask in masks.items():
        weight = layers[name].weight if name in layers else None
        if weight is None or mask.dtype != torch.bool or mask.shape != weight.shape or bool(weight[~mask].any()):
            raise ValueError(f"{path}: mask {name!r} is not that of the pruned network's layer: run `{made_by}` again")
    if not masks:
        raise ValueError(f"{path} holds no masks: run `{made_by}` again")
    return masks


def operate(config: dict[str, Any], folders: Folders, train: Split, measured: Split, device: torch.device) -> Retrained:
    """Dynamic network surgery: starts from the dense network, cuts and splices while it trains.

    Args:
        config: of the stage.
        folders: of the stage.
        train: the images to learn from.
        measured: the images to measure the curve on.
        device: where to compute.

    Returns:
        The trained network and its history.
    """
    from lobs_paper.training.dns import surgery
    from lobs_paper.training.dns_masks import SurgerySettings

    network = load_network(config, folders.input("train", "model.safetensors"), folders.command("train"))
    method = config["method"]
    settings = SurgerySettings(density=config["density"], rate=method["threshold_scale"], **method["surgery"])
    return surgery(network, _training(config, folders, (train, measured), device), settings)


def _training(config: dict[str, Any], folders: Folders, splits: tuple[Split, Split], device: torch.device) -> Training:
    """Key `retrain` in the terms of `fit`."""
    from lobs_paper.training.fit import Recipe, Training

    recipe = dict(config["retrain"])
    every = recipe.pop("measure_every")
    recipe.pop("targets")
    folder = _partial(config, folders)
    return Training(*splits, Recipe(**recipe), config["seed"], every, device.type, folder=folder)


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
    batches, held_out = inputs_for_pruning(method, train, config["collect"])
    statistics = None
    if held_out is None:
        statistics = calibrate(network, train, config["collect"], solver=method["solver"])
    result = prune(
        network,
        statistics,
        make(method["solver"], **method["options"]),
        density=density,
        allocation=method["allocation"],
        limits=method["limits"],
        exclude=excluded(config),
        sequential=method["sequential"],
        stages=method["stages"],
        correct=method["correct"],
        refit=method["refit"],
        batches=batches,
        held_out=held_out,
        keep_samples=config["collect"]["kept_samples"] if "inputs_sample" in METHODS[method["solver"]].needs else None,
        in_place=True,
    )
    return result.model.cpu(), {name: mask.cpu() for name, mask in result.masks.items()}
