"""Callbacks for Lightning, whichever of its two packages is installed: keep removed weights at zero, prune first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from lobs.pruning import prune
from lobs.repair.masks import KeptMasks, keep_masks
from lobs.result import PruneResult

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError:
        raise ImportError(
            "lobs.integrations.lightning needs Lightning: install lightning or pytorch-lightning"
        ) from None


class KeepMasks(Callback):
    """Keeps removed weights at zero while a network is trained (`lobs.keep_masks`).

    Args:
        masks: bool by layer name, True where a weight is kept, or the result that holds them; None: what is zero when
            training begins was removed.
        network: name of the pruned network within the LightningModule, to which the masks' names belong; "": itself.
    """

    def __init__(self, masks: Mapping[str, Tensor] | PruneResult | None = None, network: str = "") -> None:
        self._masks = masks
        self._network = network
        self._handle: KeptMasks | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are on their device, and a checkpoint's are loaded."""
        self._handle = keep_masks(pl_module.get_submodule(self._network), self._masks)

    def on_train_end(self, *_: object) -> None:
        """No longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def on_exception(self, *_: object) -> None:
        """Likewise."""
        self.on_train_end()


class PruneCallback(KeepMasks):
    """Prunes a network in place before it is trained (`lobs.prune`), and keeps what was removed at zero afterwards.

    Of several processes each prunes from its own batches, and all go on from the first one's network. A run that goes
    on from a checkpoint is not pruned again: its zeros are kept.

    Args:
        batches: calibration inputs; None: the first of the training batches.
        count: how many of these.
        network: name of the network within the LightningModule; "": itself.
        asked: what `lobs.prune` takes: ``density=0.1``.

    Attributes:
        result: of pruning; None before.
    """

    def __init__(self, batches: Iterable | None = None, count: int = 32, network: str = "", **asked: Any) -> None:
        super().__init__(None, network)
        self._batches = batches
        self._count = count
        self._asked = asked
        self.result: PruneResult | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune on the device that the network is trained on."""
        if trainer.ckpt_path is not None:
            return
        batches = self._batches
        if batches is None:
            trainer.fit_loop.setup_data()
            batches = list(islice(trainer.train_dataloader, self._count))
        network = pl_module.get_submodule(self._network)
        self.result = prune(network, batches=batches, in_place=True, **self._asked)
        if trainer.world_size > 1:
            network.load_state_dict(trainer.strategy.broadcast(network.state_dict()))
