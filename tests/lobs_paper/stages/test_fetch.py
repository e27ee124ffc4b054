"""Stage fetch: once where data is downloaded, again where it is read from a folder."""

from __future__ import annotations

import importlib
import json
import os
import sys

import pytest
import torch

from helpers.images import encoded, write_folder
from lobs_paper.data import image_folder, mnist, sources
from lobs_paper.data.sources import noted_source
from lobs_paper.data.splits import Fetched, load_tensors, load_training_data, source_file
from lobs_paper.stages.fetch import fetch, run, stale_data


def config(tmp_path, name="folder", root=None):
    return {
        "data": {"name": name, "root": None if root is None else str(root)},
        "folders": {"data": str(tmp_path / "data")},
    }


def made_up(count):
    images, labels = torch.zeros(count, 4, 4, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8)
    return Fetched("Made up", {split: {"images": images, "labels": labels} for split in ("train", "test")})


def test_a_download_is_made_once_and_notes_no_place(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(mnist, "fetch", lambda name, root: asked.append((name, root)) or made_up(3))
    folder = tmp_path / "data"
    folder.mkdir()
    source_file(folder, "mnist").write_text("from another time")
    expected = {"data": "Made up", "train_images": 3, "test_images": 3}
    for _ in range(2):
        assert run(config(tmp_path, "mnist")) == expected
    assert asked == [("mnist", None)]
    noted = {"target": "lobs_paper.data.mnist.fetch", "code": {}}
    assert json.loads(source_file(folder, "mnist").read_text()) == noted
    (folder / "mnist/test.safetensors").unlink()
    assert run(config(tmp_path, "mnist")) == expected
    assert len(asked) == 2


def test_a_folder_is_read_again_every_time_it_is_named(tmp_path, monkeypatch):
    files = {f"{label}/{number}.png": encoded(number, (8, 8)) for label in "ab" for number in range(2)}
    root = write_folder(tmp_path / "photos", files)
    assert run(config(tmp_path, root=root)) == {"data": "photos", "train_images": 2, "test_images": 2}
    write_folder(tmp_path / "photos", {"a/2.png": encoded(9, (8, 8)), "b/2.png": encoded(9, (8, 8))})
    assert run(config(tmp_path, root=root)) == {"data": "photos", "train_images": 3, "test_images": 3}
    assert noted_source(str(root)).items() <= json.loads(source_file(tmp_path / "data", "folder").read_text()).items()
    monkeypatch.setattr(image_folder, "fetch", None)
    assert run(config(tmp_path))["train_images"] == 3, "what is there already serves"
    assert load_tensors(str(tmp_path / "data"), "folder", "train")[1] == "photos"


def test_pictures_that_changed_in_their_folder_are_noticed_and_read_again_without_naming_it(tmp_path):
    pictures = {f"{label}/{number}.png": encoded(number, (8, 8)) for label in "ab" for number in range(2)}
    root = write_folder(tmp_path / "photos", pictures)
    run(config(tmp_path, root=root))
    assert stale_data(config(tmp_path)) == ""
    before = json.loads(source_file(tmp_path / "data", "folder").read_text())
    later = (root / "a/0.png").stat().st_mtime_ns + 10**9
    (root / "a/0.png").write_bytes(encoded(7, (8, 8)))
    os.utime(root / "a/0.png", ns=(later, later))
    assert "photos have changed since" in stale_data(config(tmp_path))
    run(config(tmp_path))
    assert stale_data(config(tmp_path)) == ""
    assert json.loads(source_file(tmp_path / "data", "folder").read_text())["pictures"] != before["pictures"]


def test_the_last_byte_of_a_picture_counts_as_the_first_does(tmp_path, monkeypatch):
    for whole in (2**32, 0):  # all of a file, or its ends
        monkeypatch.setattr(sources, "READ_WHOLE", whole)
        digests = set()
        for place in (0, 9_999, None):
            data = bytearray(10_000)
            if place is not None:
                data[place] = 1
            folder = write_folder(tmp_path / "photos", {"a/0.bmp": bytes(data)})
            digests.add(noted_source(str(folder))["pictures"])
        assert len(digests) == 3


def test_data_are_read_again_by_another_function_or_after_its_code_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = "import torch\nfrom lobs_paper.data.splits import Fetched\n\n\n"
    code += "def {0}(name, root):\n    whole = dict(images=torch.full((4, 3, 3), {1}), labels=torch.arange(4))\n"
    code += "    return Fetched('Own', dict(train=dict(whole), test=dict(whole)))\n\n\n"

    def asked(name):
        return {**config(tmp_path, "own"), "data": {"name": "own", "root": None, "_target_": f"my_pictures.{name}"}}

    def read(name):
        sys.modules.pop("my_pictures", None)
        importlib.invalidate_caches()
        run(asked(name))
        return float(load_tensors(str(tmp_path / "data"), "own", "train")[0]["images"].mean())

    (tmp_path / "my_pictures.py").write_text(code.format("one", 0.25) + code.format("two", 0.75))
    assert (read("one"), read("two")) == (0.25, 0.75)
    assert "data._target_=my_pictures.one is not what" in stale_data(asked("one"))
    (tmp_path / "my_pictures.py").write_text("# a remark\n" + code.format("one", 0.25) + code.format("two", 0.75))
    assert stale_data(asked("two")) == ""
    (tmp_path / "my_pictures.py").write_text(code.format("two", 0.5))
    assert "the code of data._target_ is not what" in stale_data(asked("two"))


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
