"""DNS, dynamic network surgery (Guo et al. 2016): connections are cut and spliced back while the network trains.

The network runs on W_k * T_k with the masks of `lobs_paper.training.dns_masks`, and the loss's gradient with respect
to that product is applied to all of W_k, so that weights that are cut keep learning and may return.

`NetworkSurgery` does this as a callback. Between two minibatches the modules hold W_k * T_k and the callback holds W_k;
they change places just for the optimizer's step. So the backward pass gives the dense gradient as it stands, the
optimizer (momentum, decay) sees dense weights only, and a checkpoint is that of the plain network.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lobs_paper.training.dns_masks import Scale, SurgerySettings, first_masks, updated_masks
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Classifier, Training, fit
from lobs_paper.training.lwc import layer_weights
from lobs_paper.training.retraining import Retrained


class NetworkSurgery(pl.Callback):
    """Cuts and splices the connections of a network while it trains.

    After every minibatch the modules hold masked weights, so that whatever measures or stores the network sees the
    pruned one. Mean and deviation of |w| are those at the start of training, as in the authors' implementation.

    Args:
        settings: thresholds and times of the updates.
        seed: of the draws that decide whether the masks are updated.

    Attributes:
        masks: by layer name, True where a weight is kept.
        spliced: weights that came back, counted at every update.
    """

    def __init__(self, settings: SurgerySettings, seed: int) -> None:
        self._settings = settings
        self._draws = torch.Generator().manual_seed(seed)
        self._weights: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        self._scales: dict[str, Scale] = {}
        self.masks: dict[str, Tensor] = {}
        self.spliced = 0

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:  # type: ignore[override]
        """Takes the dense weights, now that they are on their device.

        Raises:
            ValueError: the trainer accumulates gradients: a minibatch without a step would lose the dense weights.
        """
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} is not accepted: surgery needs 1"
            )
        self._weights = layer_weights(module.network)
        if self._dense:  # a training that goes on: weights and masks are those of its checkpoint
            for parts in (self._dense, self.masks):
                parts.update({name: part.to(self._weights[name].device) for name, part in parts.items()})
            return
        self._dense = {name: weight.clone() for name, weight in self._weights.items()}
        self._scales = {name: Scale.of(weight) for name, weight in self._weights.items()}
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}
        self._update()

    def state_dict(self) -> dict[str, Any]:
        """What a training that was stopped goes on from."""
        scales = {name: asdict(scale) for name, scale in self._scales.items()}
        own = {"dense": self._dense, "masks": self.masks, "spliced": self.spliced}
        return {**own, "scales": scales, "draws": self._draws.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self._dense, self.masks, self.spliced = (state_dict[key] for key in ("dense", "masks", "spliced"))
        self._scales = {name: Scale(**values) for name, values in state_dict["scales"].items()}
        self._draws.set_state(state_dict["draws"])

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Updates the masks, when the draw says so; before the first minibatch that has been done."""
        step = trainer.global_step
        if step and float(torch.rand((), generator=self._draws)) < self._settings.probability(step):
            self._update()

    def _update(self) -> None:
        masks = updated_masks(self._dense, self.masks, self._scales, self._settings)
        self.spliced += sum(int((mask & ~self.masks[name]).sum()) for name, mask in masks.items())
        self.masks = masks
        self._apply()

    def on_before_optimizer_step(self, *_: object) -> None:
        """The gradient is that of the masked weights; the step is taken from the dense ones."""
        for name, weight in self._weights.items():
            weight.copy_(self._dense[name])

    def on_train_batch_end(self, *_: object) -> None:
        """Keeps the dense weights and puts the masked ones in their place."""
        for name, weight in self._weights.items():
            self._dense[name].copy_(weight)
        self._apply()

    def _apply(self) -> None:
        for name, weight in self._weights.items():
            torch.mul(self._dense[name], self.masks[name], out=weight)


def surgery(network: nn.Module, training: Training, settings: SurgerySettings) -> Retrained:
    """Dynamic network surgery from a trained network; after ``settings.stop`` the masks are fixed.

    Args:
        network: dense; comes back on the CPU, trained and with its cut weights exactly zero.
        training: images and recipe; its seed is also that of the updates.
        settings: thresholds and times of the updates.

    Returns:
        The network, its masks and the history, as one round. The error after pruning is that of the first masks
        on the dense weights.

    Raises:
        ValueError: the recipe ends before the masks are fixed.
    """
    if settings.stop > training.recipe.iterations:
        raise ValueError(
            f"stop={settings.stop} is not accepted: training ends after {training.recipe.iterations} iterations"
        )
    cut, masks = copy.deepcopy(network), first_masks(network, settings)
    for name, weight in layer_weights(cut).items():
        weight.mul_(masks[name])
    after_pruning = error_percent(cut, training.measured)
    operation = NetworkSurgery(settings, training.seed)
    result = fit(network, training, callbacks=[operation])
    masks = {name: mask.cpu() for name, mask in operation.masks.items()}
    done = {
        "round": 1,
        "density": sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values()),
        "error_after_pruning_percent": after_pruning,
        "error_after_retraining_percent": result.error_percent,
        "iterations": training.recipe.iterations,
    }
    return Retrained(network, masks, [{"round": 1, **point} for point in result.points], [done])
