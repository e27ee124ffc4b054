"""Training batches: their order and their augmentation depend on the seed alone."""

import pytest
import torch

from helpers.splits import split
from lobs_paper.data.splits import Split
from lobs_paper.training import datamodule
from lobs_paper.training.datamodule import InMemoryData


def test_the_order_of_training_images_depends_on_the_seed_alone():
    def labels(seed):
        module = InMemoryData(Split(split(50).images, torch.arange(50)), batch_size=8, seed=seed)
        loader = module.train_dataloader()
        return [[batch[1].tolist() for batch in loader] for _ in range(2)]

    first, second = labels(0)
    assert labels(0) == [first, second]
    assert labels(1)[0] != first
    assert first != second
    assert sorted(index for batch in first for index in batch) == list(range(50))
    assert [len(batch) for batch in first] == [8, 8, 8, 8, 8, 8, 2]


@pytest.mark.parametrize("how", ["flip", "crop_flip"])
def test_augmented_training_batches_depend_on_the_seed_alone(how):
    def epoch(seed, augment=how):
        loader = InMemoryData(split(20), batch_size=8, seed=seed, augment=augment).train_dataloader()
        return torch.cat([inputs for inputs, _ in loader])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, augment="none"))


@pytest.mark.parametrize("how", ["none", "flip", "crop_flip"])
def test_the_shares_of_two_processes_are_the_batches_of_one(monkeypatch, how):
    def batches():
        loader = InMemoryData(split(21), batch_size=8, seed=3, augment=how).train_dataloader()
        return [inputs for epoch in range(2) for inputs, _ in loader]

    alone = batches()
    shares = []
    for rank in range(2):
        monkeypatch.setattr(datamodule, "rank_and_size", lambda rank=rank: (rank, 2))
        shares.append(batches())
    for whole, first, second in zip(alone, *shares, strict=True):
        assert torch.equal(whole[::2], first)
        assert torch.equal(whole[1::2], second)
