"""Splits in memory: what a batch holds, and that the official test set is never touched."""

from __future__ import annotations

import pytest
import torch

from helpers.splits import split
from lobs_paper.data.augmentation import CHANCES
from lobs_paper.data.splits import Split, Transform, fingerprint, load_split, load_training_data, split_file
from lobs_paper.files import save_tensors


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
    train, measured = load_training_data(root, "mnist", holdout=3)
    assert torch.equal(torch.cat([train.images, measured.images]), split(10).images)
    assert (len(train), len(measured)) == (7, 3)
    with pytest.raises(ValueError, match=r"data.holdout=10: mnist has only 10 training images"):
        load_training_data(root, "mnist", holdout=10)


def test_a_changed_byte_is_noticed(root):
    path = split_file(root, "mnist", "train")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train.safetensors is damaged .* run `lobs fetch data=mnist`"):
        load_split(root, "mnist", "train")


def test_inputs_are_normalised_per_channel():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=generator, dtype=torch.uint8)
    data = Split(images, torch.zeros(5), Transform((0.1, 0.2, 0.3), (2.0,)))
    mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(data[1:3][0], (images[1:3].float() / 255 - mean) / 2)
    with pytest.raises(ValueError, match=r"data.mean=\[0.1, 0.2\]: one number or 3"):
        Transform((0.1, 0.2))(images)


def test_stored_pixels_are_not_resized(root):
    with pytest.raises(ValueError, match=r"data.size=8 is not accepted for mnist, which is stored as pixels of 5x4"):
        load_split(root, "mnist", "train", size=8, resize=None)


def test_flips_are_those_of_the_random_numbers():
    data = split(20)
    chances = torch.rand(20, CHANCES, generator=torch.Generator().manual_seed(0))
    inputs, labels = data.flipped(slice(None), chances)
    plain = data[:][0]
    assert torch.equal(labels, data.labels)
    for row, image, numbers in zip(inputs, plain, chances, strict=True):
        assert torch.equal(row, image.flip(-1) if numbers[2] < 0.5 else image)
