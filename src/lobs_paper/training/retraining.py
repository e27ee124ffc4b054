"""Retraining with fixed masks, in one round or in several with more pruning between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lobs.base.distributed import of_first, rank_and_size
from lobs.layers.network import prunable_layers
from lobs.repair.masks import keep_masks
from lobs_paper.files import load_tensors, read_json, save_tensors, write_json
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Training, fit

# Network, density -> pruned network, masks.
Pruner = Callable[[nn.Module, float], tuple[nn.Module, dict[str, Tensor]]]


@dataclass(frozen=True)
class Retrained:
    """What retraining leaves behind.

    Attributes:
        network: retrained, removed weights exactly zero.
        masks: of the last round.
        curve: round, iteration (counted over all rounds), training loss and error in percent.
        rounds: per round its density, its errors after pruning and after retraining, its iterations.
    """

    network: nn.Module
    masks: dict[str, Tensor]
    curve: list[dict[str, Any]]
    rounds: list[dict[str, Any]]

    @property
    def masks_exact(self) -> bool:
        """Whether every removed weight is exactly zero."""
        layers = prunable_layers(self.network)
        return all(not layers[name].weight[~mask].any() for name, mask in self.masks.items())

    def iterations_to(self, error: float) -> int | None:
        """Minibatches until the network at its final density was first seen at an error, earlier rounds included.

        Args:
            error: in percent.

        Returns:
            The iteration of the first measurement in the last round that is not above it; None without one.
        """
        last = self.rounds[-1]["round"]
        reached = (
            point["iteration"]
            for point in self.curve
            if point["round"] == last and point["test_error_percent"] <= error
        )
        return next(reached, None)


def retrain(
    network: nn.Module,
    masks: Mapping[str, Tensor],
    training: Training,
    further: Sequence[float] = (),
    prune: Pruner | None = None,
) -> Retrained:
    """Retrain a pruned network; then, for every further density, prune on and retrain again.

    Args:
        network: pruned; trained in place in the first round.
        masks: by layer name, True where a weight is kept.
        training: of each round; every round draws another order of the images from its seed.
        further: the densities of the rounds after the first.
        prune: prunes a retrained network; needed where there are further densities.

    Returns:
        The network, its masks and the history.

    Raises:
        ValueError: a later round brings a removed weight back, or no ``prune`` is given for it.
    """
    kept = dict(masks)
    curve: list[dict[str, Any]] = []
    rounds: list[dict[str, Any]] = []
    finished = _last_round(training.folder)
    if finished:
        tensors = load_tensors(finished.with_suffix(".safetensors"), "lobs retrain")
        network.load_state_dict({key[8:]: value for key, value in tensors.items() if key.startswith("network/")})
        kept = {key[6:]: value.bool() for key, value in tensors.items() if key.startswith("masks/")}
        history = read_json(finished, "lobs retrain")
        curve, rounds = history["curve"], history["rounds"]
    for number, target in enumerate([None, *further], start=1):
        if number <= len(rounds):
            continue
        if target is not None:
            if prune is None:
                raise ValueError(f"{len(further)} further rounds need a function that prunes")
            network, pruned = prune(network, target)
            # GPUs may round differently: all processes go on from the first one's choice.
            network.load_state_dict(of_first(network.state_dict()))
            pruned = of_first(pruned)
            _check_nested(kept, pruned, number)
            kept = pruned
        after_pruning = error_percent(network, training.measured)
        done = sum(entry["iterations"] for entry in rounds)
        with keep_masks(network, kept):
            folder = training.folder / f"round{number}" if training.folder else None
            result = fit(network, replace(training, seed=training.seed + number - 1, folder=folder))
        curve += [{"round": number, **point, "iteration": done + point["iteration"]} for point in result.points]
        rounds.append(
            {
                "round": number,
                "density": _density(kept),
                "error_after_pruning_percent": after_pruning,
                "error_after_retraining_percent": result.error_percent,
                "iterations": training.recipe.iterations,
            }
        )
        if training.folder and rank_and_size()[0] == 0:
            parts = {f"network/{key}": value for key, value in network.state_dict().items()}
            parts |= {f"masks/{name}": mask for name, mask in kept.items()}
            save_tensors(training.folder / f"round{number}.safetensors", parts)
            write_json(training.folder / f"round{number}.json", {"curve": curve, "rounds": rounds})
    return Retrained(network, kept, curve, rounds)


def _last_round(folder: Path | None) -> Path | None:
    """The history that a stopped retraining has left of its last finished round."""
    found = sorted(folder.glob("round*.json"), key=lambda path: int(path.stem[5:])) if folder else []
    return found[-1] if found else None


def _check_nested(before: Mapping[str, Tensor], after: Mapping[str, Tensor], number: int) -> None:
    for name, mask in after.items():
        back = int((mask & ~before[name]).sum())
        if back:
            raise ValueError(
                f"round {number} counts {back} weights of layer {name!r} as kept that an earlier round removed: "
                f"rounds need a method that removes zero weights first"
            )


def _density(masks: Mapping[str, Tensor]) -> float:
    kept = sum(int(mask.sum()) for mask in masks.values())
    return kept / sum(mask.numel() for mask in masks.values())
