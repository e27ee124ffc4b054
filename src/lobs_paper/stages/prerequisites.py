"""A stage that is run by hand goes on with results of the settings it is given: others are made anew, or refused.

Pruning somebody's network is one command: where `model.weights` is given, the stages before one run when their output
is missing or was made from other weights, data or settings, and after any other stage that was needed. Where the
network is trained here, which may take days, the stage to run again is named instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
    if config["model"].get("weights") is None:
        return []
    done: list[str] = []
    for earlier in _before(stage, seed_only):
        if done or _stale(earlier, config, unknown=False) != "":
            print(f"first lobs {earlier}, whose output is needed", flush=True)
            run_stage(earlier, stage_config(config, earlier))
            done.append(earlier)
    return done


def refuse_stale(stage: str, config: Mapping[str, Any]) -> None:
    """Refuse to go on with results that were made with other settings than those given.

    Args:
        stage: that is to run.
        config: the whole configuration.

    Raises:
        ValueError: the output of a stage before it is there and was made from other weights, data or settings; the
            message names the command to run again.
    """
    for earlier in _before(stage):
        if reason := _stale(earlier, config, unknown=True):
            raise ValueError(reason)


def _before(stage: str, seed_only: bool = False) -> tuple[str, ...]:
    order = (*SEED_STAGES, *METHOD_STAGES)
    stage = "prune" if stage == "factorise" else stage
    before = order[: order.index(stage)] if stage in order else ()
    return before[: len(SEED_STAGES)] if seed_only else before


def _stale(stage: str, config: Mapping[str, Any], unknown: bool) -> str | None:
    """Why the output of a stage does not fit; empty where it fits, None where there is none.

    Args:
        stage: its name.
        config: the whole configuration.
        unknown: whether what does not say what it was made from is taken.

    Returns:
        A sentence.
    """
    # Imported here, since a mistake in the configuration should appear before torch is imported.
    from lobs_paper.results import MAIN
    from lobs_paper.stages.fetch import stale_data
    from lobs_paper.stages.folders import Folders

    if stage == "fetch":
        return stale_data(config, unknown)
    own = stage_config(config, stage)
    folders = Folders(own)
    if not folders.holds(stage, f"{MAIN[stage]}.safetensors"):
        return None
    return folders.stale(stage, own, unknown) or ""
