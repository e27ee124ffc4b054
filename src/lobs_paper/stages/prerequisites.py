"""Pruning somebody's network is one command: where `model.weights` is given, the stages before it run when needed.

A stage is needed where its output is missing, where it was made from other weights, data or another budget, and after
any other stage that was needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lobs_paper.config.requested import requested
from lobs_paper.config.stage_parts import stage_config

# In their order; what runs once per seed comes first.
SEED_STAGES = ("fetch", "train", "collect")
METHOD_STAGES = ("prune", "retrain", "evaluate")


def run_missing(
    stage: str, config: Mapping[str, Any], run_stage: Callable[[str, dict[str, Any]], Any], seed_only: bool = False
) -> list[str]:
    """Run the stages before one where their output is missing or stale.

    Args:
        stage: which comes after them.
        config: the whole configuration; without `model.weights` nothing is done.
        run_stage: runs a stage with its part of the configuration.
        seed_only: leave out what depends on the method.

    Returns:
        The stages that have run.
    """
    order = (*SEED_STAGES, *METHOD_STAGES)
    if config["model"].get("weights") is None or stage not in order:
        return []
    before = order[: order.index(stage)]
    done: list[str] = []
    for earlier in before[: len(SEED_STAGES)] if seed_only else before:
        if done or not _is_made(earlier, config):
            print(f"lobs {earlier}: its output is needed first", flush=True)
            run_stage(earlier, stage_config(config, earlier))
            done.append(earlier)
    return done


def _is_made(stage: str, config: Mapping[str, Any]) -> bool:
    if stage == "fetch":
        return _is_fetched(config)
    # Imported here, since a mistake in the configuration should appear before torch is imported.
    from lobs_paper.files import read_json, tensor_metadata
    from lobs_paper.stages.folders import Folders
    from lobs_paper.stages.network_files import ORIGIN

    folders = Folders(stage_config(config, stage))
    main = {"train": "model", "collect": "statistics", "prune": "model", "retrain": "model"}[stage]
    try:
        path = folders.input(stage, f"{main}.safetensors")
        metrics = read_json(folders.input(stage, "metrics.json"), folders.command(stage))
    except ValueError:
        return False
    if stage == "train":
        from lobs_paper.networks.pretrained import origin

        return tensor_metadata(path).get(ORIGIN) == origin(config["model"])
    return stage != "prune" or metrics["requested"] == requested(config)


def _is_fetched(config: Mapping[str, Any]) -> bool:
    from lobs_paper.data.splits import source_file, split_file
    from lobs_paper.files import read_json

    name, root, folder = config["data"]["name"], config["data"]["root"], config["folders"]["data"]
    if not all(split_file(folder, name, split).exists() for split in ("train", "test")):
        return False
    source = source_file(folder, name)
    noted = read_json(source, "lobs fetch")["root"] if source.exists() else None
    return root is None or noted == str(Path(root).resolve())
