"""A training that was stopped goes on where it was: the same weights, byte for byte, as without the stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lobs.base.distributed import of_first, rank_and_size

# What a stop loses at most, but for the first steps after the start.
SECONDS_BETWEEN = 300.0


class Checkpoints(pl.Callback):
    """Writes Lightning's checkpoint every few minutes, with the random numbers' state; the last one of the callbacks.

    Of several processes' draws (dropout) the first one's are kept, the others begin anew after a stop.

    Args:
        file: the checkpoint, replaced as a whole.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last = time.monotonic()
        self._random: dict[str, Any] = {}

    @property
    def found(self) -> str | None:
        """The checkpoint's path, where there is one."""
        return str(self._file) if self._file.exists() else None

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """The random numbers go on."""
        if self._random and rank_and_size()[0] == 0:
            torch.set_rng_state(self._random["cpu"])
            if self._random["cuda"]:
                torch.cuda.set_rng_state_all(self._random["cuda"])

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *arguments: Any) -> None:
        """Writes it when it is time, but not at the end of an epoch, where Lightning counts in another way."""
        due = of_first(time.monotonic() - self._last >= SECONDS_BETWEEN)
        if due and arguments[-1] + 1 < trainer.num_training_batches:
            self._last = time.monotonic()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            written = self._file.with_suffix(".new")
            trainer.save_checkpoint(written)  # by all processes
            if rank_and_size()[0] == 0:
                written.replace(self._file)

    def state_dict(self) -> dict[str, Any]:
        """The random numbers' state."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self._random = state_dict
