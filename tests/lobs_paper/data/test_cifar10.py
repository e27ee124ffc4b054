"""CIFAR-10 from all that can hold it; nothing is believed that is not what was published."""

from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch

from helpers.images import encoded, write_folder, write_tar, write_zip
from lobs_paper.data import cifar10
from lobs_paper.stages.fetch import run


def batches():
    """Small batches under the published names, as the published pickles hold them, and their pixels."""
    rng = np.random.default_rng(0)
    files, pixels, labels = {}, {"train": [], "test": []}, {"train": [], "test": []}
    for split, names in cifar10.CHECKSUMS.items():
        for name in names:
            data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            numbers = rng.integers(0, 10, 4).tolist()
            files[f"cifar-10-batches-py/{name}"] = pickle.dumps({"data": data, "labels": numbers}, protocol=2)
            pixels[split].append(data.reshape(4, 3, 32, 32))
            labels[split] += numbers
    return files, {split: np.concatenate(parts) for split, parts in pixels.items()}, labels


@pytest.fixture
def published(monkeypatch):
    files, pixels, labels = batches()
    sums = {
        split: {
            name: hashlib.md5(files[f"cifar-10-batches-py/{name}"], usedforsecurity=False).hexdigest() for name in names
        }
        for split, names in cifar10.CHECKSUMS.items()
    }
    monkeypatch.setattr(cifar10, "CHECKSUMS", sums)
    return files, pixels, labels


@pytest.mark.parametrize("write", [write_folder, write_tar, write_zip])
def test_the_published_batches_are_read_from_a_folder_and_from_archives(tmp_path, published, write):
    files, pixels, labels = published
    fetched = cifar10.fetch(root=str(write(tmp_path / "source", files)))
    assert fetched.title == "CIFAR-10"
    for split in ("train", "test"):
        np.testing.assert_array_equal(fetched.splits[split]["images"], pixels[split])
        assert fetched.splits[split]["labels"].tolist() == labels[split]


def test_a_changed_batch_is_refused_before_it_is_unpickled(tmp_path, published):
    files = dict(published[0])
    files["cifar-10-batches-py/test_batch"] = b"cos\nsystem\n(S'exit 3'\ntR."
    with pytest.raises(ValueError, match=r"test_batch has MD5 .* this is not CIFAR-10 as published"):
        cifar10.fetch(root=str(write_folder(tmp_path, files)))


def test_a_batch_with_anything_but_arrays_is_refused(monkeypatch, tmp_path, published):
    files, _, _ = published
    harmful = pickle.dumps({"data": np.load, "labels": []})
    monkeypatch.setitem(cifar10.CHECKSUMS["test"], "test_batch", hashlib.md5(harmful).hexdigest())
    source = write_folder(tmp_path, {**files, "cifar-10-batches-py/test_batch": harmful})
    with pytest.raises(ValueError, match=r"test_batch cannot be read as a batch of CIFAR-10: .* is not admitted"):
        cifar10.fetch(root=str(source))


def pictures(kind):
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    return {
        f"all/{split}/{label}/{number:04}.{suffix}": encoded(100 * number + place, (32, 32), kind)
        for split in ("train", "test")
        for place, label in enumerate(cifar10.CLASSES)
        for number in range(2)
    }


@pytest.mark.parametrize(("kind", "title"), [("JPEG", "CIFAR-10 (JPEG)"), ("PNG", "CIFAR-10")])
def test_pictures_are_read_class_by_class_in_turn_and_named_for_what_they_are(tmp_path, kind, title):
    fetched = cifar10.fetch(root=str(write_zip(tmp_path / "x.zip", pictures(kind))))
    assert fetched.title == title
    train = fetched.splits["train"]
    assert train["labels"].tolist() == [*range(10), *range(10)]
    if kind == "PNG":
        rng = np.random.default_rng(103)
        expected = torch.from_numpy(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).permute(2, 0, 1)
        assert torch.equal(train["images"][13], expected)


def test_another_size_or_another_data_set_is_refused(tmp_path):
    files = pictures("PNG")
    files["all/train/cat/0001.png"] = encoded(0, (33, 32))
    with pytest.raises(ValueError, match=r"cat/0001.png has 33x32 pixels, expected 32x32"):
        cifar10.fetch(root=str(write_folder(tmp_path / "a", files)))
    with pytest.raises(ValueError, match=r"does not hold CIFAR-10: data=cifar10 needs cifar-10-python.tar.gz"):
        cifar10.fetch(root=str(write_folder(tmp_path / "b", {"train/cow/1.png": encoded(0)})))
    with pytest.raises(ValueError, match=r"data.root=nowhere does not exist: data=cifar10 needs"):
        cifar10.fetch(root="nowhere")
    (tmp_path / "file.txt").write_text("no archive")
    with pytest.raises(ValueError, match="is neither a folder nor a zip or tar archive"):
        cifar10.fetch(root=str(tmp_path / "file.txt"))


def test_where_the_data_came_from_is_noted_beside_it_and_nowhere_else(tmp_path, published):
    source = write_folder(tmp_path / "source", published[0])
    config = {"data": {"name": "cifar10", "root": str(source)}, "folders": {"data": str(tmp_path / "data")}}
    assert run(config) == {"data": "CIFAR-10", "train_images": 20, "test_images": 4}
    assert json.loads((tmp_path / "data/cifar10.source.json").read_text())["root"] == str(source)
    for split in ("train", "test"):
        assert str(source).encode() not in (tmp_path / f"data/cifar10/{split}.safetensors").read_bytes()


def test_a_failed_download_says_what_to_give_instead(monkeypatch):
    from torchvision.datasets import utils

    def unreachable(*_):
        raise OSError("no internet")

    monkeypatch.setattr(utils, "download_url", unreachable)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(no internet\): .* give data.root=<path>"):
        cifar10.fetch()
