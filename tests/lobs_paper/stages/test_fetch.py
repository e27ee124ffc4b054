"""Stage fetch: once where data is downloaded, again where it is read from a folder."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.images import encoded, write_folder
from lobs_paper.data import image_folder, mnist
from lobs_paper.data.sources import noted_source
from lobs_paper.data.splits import Fetched, load_tensors, load_training_data, source_file
from lobs_paper.stages.fetch import fetch, run


def config(tmp_path, name="folder", root=None):
    return {
        "data": {"name": name, "root": None if root is None else str(root)},
        "folders": {"data": str(tmp_path / "data")},
    }


def made_up(count):
    images, labels = torch.zeros(count, 4, 4, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8)
    return Fetched("Made up", {split: {"images": images, "labels": labels} for split in ("train", "test")})


def test_a_download_is_made_once_and_leaves_no_source(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(mnist, "fetch", lambda name, root: asked.append((name, root)) or made_up(3))
    folder = tmp_path / "data"
    folder.mkdir()
    source_file(folder, "mnist").write_text("from another time")
    expected = {"data": "Made up", "train_images": 3, "test_images": 3}
    for _ in range(2):
        assert run(config(tmp_path, "mnist")) == expected
    assert asked == [("mnist", None)]
    assert not source_file(folder, "mnist").exists()
    (folder / "mnist/test.safetensors").unlink()
    assert run(config(tmp_path, "mnist")) == expected
    assert len(asked) == 2


def test_a_folder_is_read_again_every_time_it_is_named(tmp_path, monkeypatch):
    files = {f"{label}/{number}.png": encoded(number, (8, 8)) for label in "ab" for number in range(2)}
    root = write_folder(tmp_path / "photos", files)
    assert run(config(tmp_path, root=root)) == {"data": "photos", "train_images": 2, "test_images": 2}
    write_folder(tmp_path / "photos", {"a/2.png": encoded(9, (8, 8)), "b/2.png": encoded(9, (8, 8))})
    assert run(config(tmp_path, root=root)) == {"data": "photos", "train_images": 3, "test_images": 3}
    assert json.loads(source_file(tmp_path / "data", "folder").read_text()) == noted_source(str(root))
    monkeypatch.setattr(image_folder, "fetch", None)
    assert run(config(tmp_path))["train_images"] == 3, "what is there already serves"
    assert load_tensors(str(tmp_path / "data"), "folder", "train")[1] == "photos"


def test_nothing_is_written_where_nothing_can_be_had(tmp_path):
    with pytest.raises(ValueError, match="data=folder is not downloaded"):
        run(config(tmp_path))
    assert not list(tmp_path.iterdir())


def own(**tensors):
    whole = {"images": torch.rand(4, 3, 5, 5), "labels": torch.arange(4), **tensors}
    return Fetched("Own", {"train": dict(whole), "test": dict(whole)})


def fetched(monkeypatch, data):
    monkeypatch.setattr(mnist, "fetch", lambda name, root: data)
    return fetch("lobs_paper.data.mnist.fetch", "own", None)


def test_floats_of_ones_own_stay_as_they_are(tmp_path, monkeypatch):
    data = own()
    monkeypatch.setattr(mnist, "fetch", lambda name, root: data)
    run(config(tmp_path, "mnist"))
    train, _ = load_training_data(tmp_path / "data", "mnist", mean=[0.5], std=[2.0])
    assert torch.equal(train[:][0], (data.splits["train"]["images"] - 0.5) / 2)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"images": torch.zeros(4, 3, 5, 5, dtype=torch.int64)}, "images are torch.int64: expected uint8, of which"),
        ({"images": torch.zeros(4, 3, 5, 5, dtype=torch.complex64)}, "images are torch.complex64"),
        ({"images": torch.full((4, 5, 5), float("nan"))}, r"images are \[4, 5, 5\] for 4 labels: expected finite"),
        ({"images": torch.zeros(3, 5, 5)}, r"images are \[3, 5, 5\] for 4 labels"),
        ({"images": torch.zeros(4, 5)}, r"images are \[4, 5\] for 4 labels"),
        ({"images": [1, 2]}, "images is a list, expected a tensor"),
        ({"labels": torch.rand(4)}, "labels are torch.float32 of 4: expected whole numbers"),
        ({"labels": torch.arange(4) - 1}, "labels are torch.int64 of 4: expected whole numbers"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(monkeypatch, tensors, expected):
    with pytest.raises(ValueError, match=f"train.{expected}"):
        fetched(monkeypatch, own(**tensors))
