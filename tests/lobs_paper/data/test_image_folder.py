"""Folders of pictures: which picture is in which split with which label, and what comes out of the decoder."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import SETTINGS, encoded, write_folder, write_tar, write_zip
from lobs_paper.data import image_folder
from lobs_paper.data.augmentation import CHANCES, random_box
from lobs_paper.data.splits import load_split, load_training_data
from lobs_paper.stages.fetch import run


def names_of(fetched, split):
    return bytes(fetched.splits[split]["names"].tolist()).decode().split("\n")


def test_every_second_picture_of_a_flat_set_calibrates(tmp_path):
    files = {f"{label}/{number}.png": encoded(number) for label in ("b", "a") for number in range(4)}
    fetched = image_folder.fetch("folder", str(write_folder(tmp_path / "photos", {**files, "readme.txt": b""})))
    assert fetched.title == "photos"
    assert names_of(fetched, "train") == ["a/0.png", "b/0.png", "a/2.png", "b/2.png"]
    assert names_of(fetched, "test") == ["a/1.png", "b/1.png", "a/3.png", "b/3.png"]
    assert fetched.splits["test"]["labels"].tolist() == [0, 1, 0, 1]


def test_folders_of_splits_are_kept_apart(tmp_path):
    files = {f"{split}/{label}/{split}.png": encoded(1) for split in ("train", "val") for label in "ba"}
    fetched = image_folder.fetch("folder", str(write_folder(tmp_path, files)))
    assert names_of(fetched, "train") == ["train/a/train.png", "train/b/train.png"]
    assert names_of(fetched, "test") == ["val/a/val.png", "val/b/val.png"]


def test_imagenet_has_a_thousand_classes_numbered_in_the_order_of_their_wnids(tmp_path):
    picture = encoded(3, (8, 8), "JPEG")
    files = {f"n{90000000 - number}/x.JPEG": picture for number in range(1000)}
    source = write_zip(tmp_path / "x.zip", files)
    fetched = image_folder.fetch("imagenet_sample", str(source))
    assert fetched.title == "ImageNet sample"
    labels = fetched.splits["train"]["labels"].tolist()
    assert sorted(labels) == list(range(0, 1000, 2))
    assert sorted(fetched.splits["test"]["labels"].tolist()) == list(range(1, 1000, 2))
    first_half = sum(label < 500 for label in labels[:100])
    assert 30 < first_half < 70  # sorted, the first 100 pictures would show nothing but animals
    del files["n90000000/x.JPEG"]
    with pytest.raises(ValueError, match="holds 999 pictures of 999 classes, expected 1000 classes"):
        image_folder.fetch("imagenet", str(write_zip(tmp_path / "y.zip", files)))


@pytest.mark.parametrize("name", ["imagenet", "imagenet_sample", "folder"])
def test_without_a_root_one_message_says_what_to_get_and_which_key_to_set(name):
    with pytest.raises(ValueError, match=rf"data={name} is not downloaded: give data.root=<path>, "):
        image_folder.fetch(name)
    with pytest.raises(ValueError, match=rf"data.root=nowhere does not exist: data={name} needs "):
        image_folder.fetch(name, "nowhere")


def fetched(tmp_path, write):
    files = {
        f"{label}/{number}.png": encoded(10 * number + place) for place, label in enumerate("ab") for number in range(4)
    }
    source = write(tmp_path / "source", files)
    config = {"data": {"name": "folder", "root": str(source)}, "folders": {"data": str(tmp_path / "data")}}
    assert run(config) == {"data": "source", "train_images": 4, "test_images": 4}
    return tmp_path / "data", files


def reference(data):
    """Short side to 20, bilinear, the 16x16 in the middle."""
    picture = Image.open(io.BytesIO(data))
    picture = picture.resize((26, 20), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture.crop((5, 2, 21, 18)))).permute(2, 0, 1)


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_a_batch_is_resized_cropped_and_normalised(tmp_path, write):
    root, files = fetched(tmp_path, write)
    train, test = load_training_data(root, "folder", **SETTINGS)
    inputs, labels = test[[2, 1]]
    assert labels.tolist() == [0, 1]
    for row, name in zip(inputs, ("a/3.png", "b/1.png"), strict=True):
        torch.testing.assert_close(row, (reference(files[name]).float() / 255 - 0.5) / 0.25)
    assert torch.equal(test[[2, 1]][0], inputs)  # from what was kept
    assert torch.equal(train.part(1, 3)[:][0], train[1:3][0])
    assert (train.title, train.values) == ("source", 3 * 16 * 16)


def test_views_are_crops_of_the_same_picture_and_always_the_same(tmp_path):
    root, _ = fetched(tmp_path, write_folder)
    train = load_split(root, "folder", "train", **SETTINGS)
    views = train.with_views(3)
    assert len(views) == 12
    inputs, labels = views[:]
    assert labels.tolist() == train.labels.tolist() * 3
    assert torch.equal(inputs[:4], train[:][0])
    assert not torch.equal(inputs[4:8], inputs[8:])
    assert torch.equal(torch.cat([batch for batch, _ in views.batches(5)]), inputs)
    mixed = torch.tensor([9, 0, 4, 2])
    assert torch.equal(views[mixed][0], inputs[mixed])


def test_a_whole_picture_unflipped_is_its_own_crop(tmp_path):
    root, files = fetched(tmp_path, write_folder)
    split = load_split(root, "folder", "train", size=12, crop_scale=[1.0, 1.0], resize=None, mean=[], std=[])
    chances = torch.full((1, CHANCES), 0.5)  # ratio 1: a square of the picture's area, cut at its height
    inputs, _ = split.augmented([0], chances)
    picture = Image.open(io.BytesIO(files["a/0.png"]))
    left, top, right, bottom = random_box(40, 30, (1.0, 1.0), [0.5] * CHANCES)
    assert (right - left, bottom - top) == (35, 30)
    expected = picture.resize((12, 12), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    torch.testing.assert_close(inputs[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1).float() / 255)


def test_what_became_of_the_folder_is_said(tmp_path):
    root, _ = fetched(tmp_path, write_folder)
    (tmp_path / "source/a/0.png").write_bytes(b"no picture")
    (tmp_path / "source/b/0.png").unlink()
    train = load_split(root, "folder", "train", **SETTINGS)
    with pytest.raises(ValueError, match=r"a/0.png is not a picture that can be read"):
        train[[0]]
    with pytest.raises(ValueError, match=r"b/0.png cannot be read \(No such file or directory\)"):
        train[[1]]
    assert json.loads((root / "folder.source.json").read_text())["root"] == str(tmp_path / "source")
    (root / "folder.source.json").unlink()
    with pytest.raises(ValueError, match=r"run `lobs fetch data=folder data.root=<folder of the pictures>` again"):
        load_split(root, "folder", "train", **SETTINGS)
    with pytest.raises(ValueError, match=r"data.size=null is not accepted for pictures"):
        load_split(root, "folder", "train", size=None)
