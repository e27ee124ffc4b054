"""Stage factorise: what takes long of some of a large network's layers, so that many processes share them out.

``lobs factorise -m +sweep=layers`` with a launcher does all parts side by side; ``lobs prune`` with the same settings
then finds them and does what is left.
"""

from __future__ import annotations

from math import prod
from typing import Any

from lobs.layers.network import prunable_layers
from lobs_paper.config.errors import ConfigError
from lobs_paper.progress import progress
from lobs_paper.stages.folders import Folders
from lobs_paper.stages.prune import planned


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Compute the paths of one part of the layers and keep them where stage prune looks for them.

    Args:
        config: what `STAGE_KEYS["factorise"]` lists.

    Returns:
        Which part, how many layers, and for how many of them something is kept.

    Raises:
        ConfigError: the method has nothing that takes long.
    """
    part, parts = map(int, config["part"].split("/"))
    # As stage prune has it, also where this is a sweep's point with a folder of its own.
    own = {key: value for key, value in config.items() if key != "part"}
    own["folders"] = {**config["folders"], "output": None}
    plan, *_ = planned(own, Folders(own), progress("factorising"))
    modules = prunable_layers(plan.model)
    largest_first = sorted(plan.names, key=lambda name: -_work(modules[name].weight.shape))
    names = largest_first[part - 1 :: parts]
    kept = plan.factorise(names)
    if names and not kept:
        raise ConfigError(f"method {config['method']['name']} keeps nothing that takes long: run `lobs prune` at once")
    return {"experiment": config["name"], "part": config["part"], "layers": len(names), "kept": kept}


def _work(shape: tuple[int, ...]) -> int:
    """About how long a layer takes: a factorisation for every row."""
    rows, *inputs = shape
    return rows * prod(inputs) ** 3
