"""A Lightning data module over tensors in memory: no worker processes, whole batches by one indexing each."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from lobs.experiment.data import Split
from lobs.processes import rank_and_size


class _Shares(Sampler[list[int]]):
    """This process's share of every minibatch; the order is that of one process."""

    def __init__(self, minibatches: BatchSampler) -> None:
        self._minibatches = minibatches
        self._rank, self._size = rank_and_size()

    def __len__(self) -> int:
        return len(self._minibatches)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._minibatches:
            yield indices[self._rank :: self._size]


class InMemoryData(pl.LightningDataModule):
    """Shuffled training batches of a split.

    Args:
        train: the images to learn from.
        batch_size: images per minibatch of all processes together; the last one of an epoch may be smaller.
        seed: of the order of the images.
    """

    def __init__(self, train: Split, batch_size: int, seed: int) -> None:
        super().__init__()
        self._train = train
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def train_dataloader(self) -> DataLoader:
        """Batches of one epoch; every epoch draws a new order."""
        order = RandomSampler(self._train, generator=self._generator)  # type: ignore[arg-type]
        # With batch_size=None the sampler's whole list of indices reaches Split.__getitem__ at once.
        return DataLoader(
            self._train,  # type: ignore[arg-type]
            sampler=_Shares(BatchSampler(order, self._batch_size, drop_last=False)),
            batch_size=None,
            num_workers=0,
        )
