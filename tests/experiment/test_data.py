"""Splits in memory: what a batch holds, and that the official test set is never touched."""

from __future__ import annotations

import pytest
import torch

from lobs.experiment.data import Split, fingerprint, load_split, load_training_data, split_file
from lobs.experiment.datamodule import InMemoryData
from lobs.pipeline.files import save_tensors


def split(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 4, 5), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)


@pytest.fixture
def root(tmp_path):
    for name, part in (("train", split(10)), ("test", split(6, seed=1))):
        labels = part.labels.to(torch.uint8)
        save_tensors(
            split_file(tmp_path, "mnist", name),
            {"images": part.images, "labels": labels},
            {"md5": fingerprint(part.images, labels)},
        )
    return tmp_path


def test_a_batch_is_scaled_to_one_and_has_a_channel():
    data = split()
    inputs, labels = data[[3, 1]]
    assert inputs.shape == (2, 1, 4, 5)
    torch.testing.assert_close(inputs[:, 0], data.images[[3, 1]].float() / 255)
    assert labels.tolist() == [0, 1]


def test_batches_cover_every_image_once_and_in_order():
    data = split()
    batches = list(data.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), data[slice(None)][0])


def test_without_a_validation_part_the_official_split_is_used(root):
    train, measured = load_training_data(root, "mnist")
    assert torch.equal(train.images, split(10).images)
    assert torch.equal(measured.images, split(6, seed=1).images)


def test_a_validation_part_comes_out_of_the_training_set(root):
    train, measured = load_training_data(root, "mnist", validation=3)
    assert torch.equal(torch.cat([train.images, measured.images]), split(10).images)
    assert (len(train), len(measured)) == (7, 3)
    with pytest.raises(ValueError, match=r"data.validation=10: mnist has only 10 training images"):
        load_training_data(root, "mnist", validation=10)


def test_a_changed_byte_is_noticed(root):
    path = split_file(root, "mnist", "train")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train.safetensors has MD5 .* run `lobs fetch data=mnist`"):
        load_split(root, "mnist", "train")


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
