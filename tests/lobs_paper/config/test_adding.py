"""A network is one class and one YAML, a data set is one class or function and one YAML: nothing else is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from helpers.images import encoded, write_folder
from helpers.stages import lobs, write_data
from lobs_paper.cli import main

CONF = Path(__file__).parents[3] / "conf"
NETWORK = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self, units):
        super().__init__(nn.Flatten(), nn.Linear(784, units), nn.ReLU(), nn.Linear(units, 10))
"""
DATA = """
import torch

class Bars:
    title = "Bars"

    def __init__(self, name, root):
        self.splits = {"train": self.split(40), "test": self.split(20)}

    def split(self, count):
        labels = torch.arange(count) % 8
        images = torch.zeros(count, 8, 8, dtype=torch.uint8)
        images[torch.arange(count), labels] = 255
        return {"images": images, "labels": labels}

def fetch(name, root):
    return Bars(name, root)

def nothing(name, root):
    return {}

def no_arguments():
    return Bars("", None)
"""
FAST = ["train.epochs=1", "train.batch_size=20", "collect.batch_size=40", "threads=1", "device=cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of somebody's own and a copy of conf/ for the YAML."""
    shutil.copytree(CONF, tmp_path / "mine")
    (tmp_path / "own_network.py").write_text(NETWORK)
    (tmp_path / "own_data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOBS_CONF", "mine")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_network", "own_data"):
        sys.modules.pop(name, None)


def test_a_network_is_one_class_and_one_yaml(folder):
    (folder / "mine/model/tiny.yaml").write_text("_target_: own_network.Tiny\nunits: 6\n")
    write_data("data", train=80, test=40)
    for stage in ("train", "collect", "prune"):
        lobs(stage, "model=tiny", "name=tiny", "density=0.5", *FAST)
    layers = json.loads((folder / "runs/tiny/seed0/lobs/prune/layers.json").read_text())
    assert [layer["name"] for layer in layers] == ["1", "3"]


@pytest.mark.parametrize("target", ["Bars", "fetch"])
def test_a_data_set_is_one_class_or_function_and_one_yaml(folder, target):
    (folder / "mine/data/bars.yaml").write_text(f"name: bars\n_target_: own_data.{target}\n")
    lobs("fetch", "data=bars")
    assert (folder / "data/bars/train.safetensors").exists()
    lobs("train", "data=bars", "name=bars", "model.inputs=64", "model.hidden=[8]", *FAST)
    assert json.loads((folder / "runs/bars/seed0/train/metrics.json").read_text())["data"] == "Bars"


def test_pictures_under_a_name_of_their_own_are_one_yaml(folder):
    (folder / "mine/data/flowers.yaml").write_text("name: flowers\n_target_: lobs_paper.data.image_folder.fetch\n")
    write_folder(folder, {f"photos/{label}/{n}.jpg": encoded(n, kind="JPEG") for label in "ab" for n in range(2)})
    lobs("fetch", "data=flowers", "data.root=photos")
    assert (folder / "data/flowers/train.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["data.name=bars"],
            r"data.name='bars' is not accepted: one of mnist, .*, or a name of your own with data._targ",
        ),
        (["data=bars"], r"data=bars is not accepted: one of cifar10, "),
        (["data._target_=own_data.none"], r"data._target_='own_data.none' cannot be imported: .*no attribute 'none'"),
        (["data._target_=own_data.nothing"], r"data._target_='own_data.nothing' gives a dict: expected `title` and"),
        (["data._target_=own_data.no_arguments"], r"is not accepted: it is called with name and root"),
        (["data._target_=3"], r"data._target_='3' cannot be imported"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said_in_one_line(folder, capsys, words, expected):
    import re

    assert main(["fetch", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(expected, said)
    assert said.count("\n") == 1
