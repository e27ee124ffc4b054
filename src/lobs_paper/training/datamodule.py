"""A Lightning data module over a split: no worker processes, whole batches by one indexing each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from lobs.base.distributed import rank_and_size
from lobs_paper.data.augmentation import CHANCES
from lobs_paper.data.splits import Split


class _Shares(Sampler[Any]):
    """This process's share of every minibatch; the order and the random numbers are those of one process.

    Args:
        minibatches: of all processes together.
        generator: of the augmentation's random numbers, which then go with the indices; None: indices alone.
    """

    def __init__(self, minibatches: BatchSampler, generator: torch.Generator | None) -> None:
        self._minibatches = minibatches
        self._generator = generator
        self._rank, self._size = rank_and_size()
        self.skip = 0  # minibatches of the next epoch that are drawn, but not given

    def __len__(self) -> int:
        return len(self._minibatches)

    def __iter__(self) -> Iterator[Any]:
        mine, skip = slice(self._rank, None, self._size), self.skip
        for number, indices in enumerate(self._minibatches):
            request: Any = indices[mine]
            if self._generator is not None:
                request = request, torch.rand(len(indices), CHANCES, generator=self._generator)[mine]
            if number >= skip:
                yield request


class _Resumable(DataLoader):
    """A loader whose state is the epoch's beginning and how much of it was given; Lightning keeps it in checkpoints.

    Args:
        split: gives a batch by a request.
        shares: the requests.
        generator: of all that is random in them.
    """

    def __init__(self, split: Any, shares: _Shares, generator: torch.Generator) -> None:
        # With batch_size=None the sampler's whole list of indices reaches Split.__getitem__ at once.
        super().__init__(split, sampler=shares, batch_size=None, num_workers=0)
        self._random, self._shares = generator, shares
        self._begun, self._given = generator.get_state(), 0

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"begun": self._begun, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next epoch is the rest of the one in which the state was taken."""
        self._random.set_state(state["begun"])
        self._shares.skip = state["given"]

    def __iter__(self) -> Any:
        self._begun, self._given = self._random.get_state(), self._shares.skip
        return self._counted(super().__iter__())

    def _counted(self, batches: Any) -> Iterator[Any]:
        for batch in batches:
            self._shares.skip = 0
            self._given += 1
            yield batch


class _Augmented:
    """A split whose batches are varied by the random numbers that come with the indices."""

    def __init__(self, split: Split, how: str) -> None:
        self._split = split
        self._how = how

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, request: tuple[list[int], Tensor]) -> tuple[Tensor, Tensor]:
        """A batch."""
        return self._split.augmented(*request) if self._how == "crop_flip" else self._split.flipped(*request)


class InMemoryData(pl.LightningDataModule):
    """Shuffled training batches of a split.

    Args:
        train: the images to learn from.
        batch_size: images per minibatch of all processes together; the last one of an epoch may be smaller.
        seed: of the order of the images and of their augmentation.
        augment: ``none``, ``flip`` or ``crop_flip``: how images are varied at random.
    """

    def __init__(self, train: Split, batch_size: int, seed: int, augment: str = "none") -> None:
        super().__init__()
        self._train = train
        self._batch_size = batch_size
        self._augment = augment
        self._generator = torch.Generator().manual_seed(seed)

    def train_dataloader(self) -> DataLoader:
        """Batches of one epoch; every epoch draws a new order."""
        order = RandomSampler(self._train, generator=self._generator)  # type: ignore[arg-type]
        varied = self._augment != "none"
        minibatches = BatchSampler(order, self._batch_size, drop_last=False)
        shares = _Shares(minibatches, self._generator if varied else None)
        return _Resumable(_Augmented(self._train, self._augment) if varied else self._train, shares, self._generator)
