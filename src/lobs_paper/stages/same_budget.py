"""The stages after prune go on with what it left, which must be what they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lobs_paper.config.requested import requested
from lobs_paper.stages.folders import Folders


def require_same_budget(config: Mapping[str, Any], folders: Folders, *needed: str) -> dict[str, Any]:
    """The prune stage's metrics, once they are known to belong to the budget that this stage is asked for.

    Args:
        config: of the stage.
        folders: of the stage.
        needed: keys that have to be there.

    Returns:
        The metrics.

    Raises:
        ValueError: the network on disk was pruned to another budget.
    """
    path = folders.input("prune", "metrics.json")
    metrics = folders.metrics("prune", "requested", *needed)
    asked, found = requested(config), metrics["requested"]
    if asked != found:
        shown = [" ".join(f"{key}={value}" for key, value in budget.items()) for budget in (asked, found)]
        key = next(iter(asked))
        raise ValueError(
            f"{shown[0]} was asked for, but {path.parent} was pruned with {shown[1]}: "
            f"run `{folders.command('prune')} {key}={config[key]}` first"
        )
    return metrics
