"""Somebody's own network in one command: the example of docs/own-network.md, from an empty folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.images import encoded, write_folder
from lobs_paper.cli import main
from lobs_paper.results import CHECKSUM, MADE_FROM

DOCUMENT = Path(__file__).parents[3] / "docs/own-network.md"
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))

class Both(Net):
    def forward(self, x):
        maps = self.act(self.norm(self.conv(x)))
        return {"out": self.head(maps.mean((2, 3))), "maps": maps}
"""
NETS = ("Net", "Both")
QUICK = ["retrain.iterations=0", "density_grid=[0.5]", "method=magnitude"]
FAST = ["device=cpu", "threads=1", "data.size=16", "data.resize=20"]


def commands():
    """The overrides of the document's commands: of a network of torchvision, and of one's own."""
    found = re.findall(r"```sh\n(lobs prune .*?)\n```", DOCUMENT.read_text(encoding="utf-8"))
    return [shlex.split(command)[2:] for command in found]


def example():
    """Those of the command for a network of one's own."""
    return commands()[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_folder(tmp_path, {f"photos/{label}/{n}.jpg": encoded(n, kind="JPEG") for label in "abc" for n in range(4)})
    write_folder(tmp_path, {"my_package/net.py": NET.encode()})
    save_weights(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture
def once(folder):
    """The folder, in which every stage has run."""
    assert main(["evaluate", *example(), *FAST, *QUICK]) == 0
    return folder


def save_weights(folder, seed=0, width=4):
    namespace = {}
    exec(NET, namespace)
    torch.manual_seed(seed)
    torch.save(namespace["Net"](width).state_dict(), folder / "net.pt")


def ran(capsys):
    """The stages that ran of themselves."""
    return re.findall(r"first lobs (\w+), whose output is needed", capsys.readouterr().out)


def test_the_documents_command_runs_as_it_stands_in_a_new_process(folder):
    """With a size of its own: the document's is ImageNet's."""
    command = [sys.executable, "-m", "lobs_paper.cli", "prune", *example(), *FAST]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = load_file(folder / "runs/Net/seed0/lobs/prune/model.safetensors")
    kept = sum(int((weights[f"{name}.weight"] != 0).sum()) for name in ("conv", "head"))
    assert kept == int(0.3 * (4 * 27 + 3 * 4))
    result = json.loads((folder / "runs/Net/seed0/lobs/prune/metrics.json").read_text())
    assert (result["experiment"], result["data"], result["requested"]) == ("Net", "photos", {"density": 0.3})
    train = json.loads((folder / "runs/Net/seed0/train/metrics.json").read_text())
    dense = load_file(folder / "runs/Net/seed0/train/model.safetensors")
    assert train["epochs"] == 0
    state = torch.load(folder / "net.pt", weights_only=True)
    assert all(torch.equal(dense[key], state[key]) for key in state)


def test_only_what_is_missing_or_stale_runs_before_a_stage(folder, capsys):
    def lobs(stage, *words):
        assert main([stage, *example(), *FAST, *words]) == 0
        return ran(capsys)

    assert lobs("prune") == ["fetch", "train", "collect"]
    assert lobs("prune", "density=0.5") == []
    assert lobs("evaluate", "retrain.iterations=0", "density=0.5") == ["retrain"]
    assert lobs("evaluate", "retrain.iterations=0") == ["prune", "retrain"]
    save_weights(folder, seed=1)
    assert lobs("prune") == ["train", "collect"]
    (folder / "photos").rename(folder / "pictures")
    assert lobs("prune", "data.root=pictures") == ["fetch", "train", "collect"]
    save_weights(folder, width=5)
    assert lobs("collect", "model.width=5", "data.root=pictures") == ["train"]


@pytest.mark.parametrize(
    ("stage", "word", "runs"),
    [
        ("prune", "collect.images=2", ["collect"]),
        ("prune", "collect.augmented_copies=2", ["collect"]),
        ("prune", "data.mean=[0.5]", ["train", "collect"]),
        ("retrain", "exclude=[head]", ["prune"]),
        ("retrain", "method.correct=bias", ["prune"]),
        ("evaluate", "retrain.iterations=1", ["retrain"]),
        ("evaluate", "threads=2", []),
    ],
)
def test_what_was_made_with_other_settings_is_made_anew(once, capsys, stage, word, runs):
    words = [entry for entry in [*example(), *FAST, *QUICK] if entry.split("=")[0] != word.split("=")[0]]
    assert main([stage, *words, word]) == 0
    assert ran(capsys) == runs


def test_weights_are_known_by_their_bytes_whatever_leads_to_them(once, capsys):
    words = [word for word in [*example(), *FAST, *QUICK] if not word.startswith("model.weights")]
    assert main(["prune", *words, f"model.weights={once / 'net.pt'}"]) == 0
    assert ran(capsys) == []
    function = "from pathlib import Path\n\ndef path():\n    return Path({!r})\n"
    write_folder(once, {"my_package/weights.py": function.format("net.pt").encode()})
    main(["prune", *words, "model.weights=my_package.weights.path"])
    assert ran(capsys) == ["train", "collect"], "the code that gives them is new"
    save_weights(once, seed=3)
    main(["prune", *words, "model.weights=my_package.weights.path"])
    assert ran(capsys) == ["train", "collect"], "other bytes at the same place"


def test_the_networks_own_code_counts(once, capsys):
    words = [*example(), *FAST, *QUICK]
    write_folder(once, {"my_package/net.py": f"# a remark\n{NET}".encode()})
    assert main(["prune", *words]) == 0
    assert ran(capsys) == []
    write_folder(once, {"my_package/net.py": NET.replace("ReLU(inplace=True)", "Tanh()").encode()})
    assert main(["prune", *words]) == 0
    assert ran(capsys) == ["train", "collect"]


def test_replaced_pictures_are_read_again(once, capsys):
    write_folder(once, {"photos/a/0.jpg": encoded(99, kind="JPEG")})
    assert main(["prune", *example(), *FAST, *QUICK]) == 0
    assert ran(capsys) == ["fetch", "train", "collect"]
    write_folder(once, {"photos/d/0.jpg": encoded(98, kind="JPEG"), "photos/d/1.jpg": encoded(97, kind="JPEG")})
    assert main(["prune", *example(), *FAST, *QUICK, "model.weights=null"]) == 2
    assert "run `lobs fetch data=folder data.root=photos` first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_of_the_outputs_is_pruned_by_retrained_and_measured(folder):
    words = [*FAST, "method.allocation=measured", "retrain.iterations=2", "retrain.batch_size=4"]
    assert main(["evaluate", *example(), *words]) == 0
    assert main(["evaluate", *example(), *words, "model._target_=my_package.net.Both", "model.output=out"]) == 0
    plain, both = (json.loads((folder / f"runs/{n}/seed0/lobs/evaluate/metrics.json").read_text()) for n in NETS)
    marks = {key: plain[key] for key in ("experiment", MADE_FROM, CHECKSUM)}
    assert both["pruned"].pop("bound_caveat").replace("Both", "Net") == plain["pruned"].pop("bound_caveat")
    assert {**both, **marks} == plain
    assert plain["pruned"]["storage"]["compact_bytes"]


def test_a_sweep_prepares_its_points_once(folder, capsys):
    assert main(["prune", "-m", *example()[:-1], "density=0.2,0.5", *FAST, "method=magnitude"]) == 0
    assert ran(capsys) == ["fetch", "train", "collect"]
    assert len(list((folder / "multirun").rglob("prune/model.safetensors"))) == 2
    assert (folder / "runs/Net/seed0/collect/statistics.safetensors").exists()


def test_without_weights_nothing_runs_of_itself(folder, capsys):
    words = [word for word in example() if not word.startswith("model.weights")]
    assert main(["prune", *words, *FAST]) == 2
    captured = capsys.readouterr()
    assert "run `lobs train model._target_=my_package.net.Net seed=0 " in captured.err
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.weights=none.pt", "model.weights=none.pt does not exist"),
        ("model.weights=3", "model.weights=3 is not accepted: the name of weights, a file, or null"),
        ("model.depth=3", "does not accept {'depth': 3}"),
        (
            "model._target_=my_package.net.Both",
            "dict of out=(2, 3) torch.float32, maps=(2, 4, 16, 16)",
        ),
        (
            "model.output=[1]",
            "model.output=[1] is not accepted: a key or attribute of the network's outputs",
        ),
        ("model.output=out", "output='out' is no part of the network's outputs, which are one tensor (2, 3)"),
        ("model.output=my_package.net.none", "model.output='my_package.net.none' cannot be imported"),
        ("data.root=null", "data=folder is not downloaded: give data.root=<path>"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, word, expected):
    words = [entry for entry in example() if entry.split("=")[0] != word.split("=")[0]]
    assert main(["prune", *words, *FAST, word]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert not (folder / "runs").exists()


def test_a_network_of_torchvision_takes_the_same_words(folder, capsys):
    theirs, own = commands()
    assert [word.partition("=")[0] for word in theirs] == [word.partition("=")[0] for word in own]
    assert main(["prune", *theirs, "--cfg"]) == 0
    assert "_target_: torchvision.models.resnet18" in capsys.readouterr().out
