"""Where a stage reads and writes, and the command that is named where something is missing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.stages import SMALL, write_data
from lobs_paper.cli import main
from lobs_paper.files import save_tensors
from lobs_paper.stages.folders import Folders, writable


def folders(output=None, runs="runs", **changes):
    return Folders(
        {
            "name": "lenet5",
            "seed": 3,
            "method": {"name": "lobs"},
            "model": {"_target_": "lobs_paper.networks.lenet5.LeNet5"},
            "folders": {"output": output, "runs": runs},
            **changes,
        }
    )


def test_what_methods_have_in_common_stands_beside_their_own_folders():
    assert folders().output("train") == Path("runs/lenet5/seed3/train")
    assert folders().output("collect") == Path("runs/lenet5/seed3/collect")
    assert folders().output("prune") == Path("runs/lenet5/seed3/lobs/prune")
    assert folders(output="point").output("prune") == Path("point/lenet5/seed3/lobs/prune")


def test_what_a_point_has_is_preferred_and_what_it_lacks_comes_from_the_runs(tmp_path):
    found = folders(str(tmp_path / "point"), str(tmp_path / "runs"))
    written = tmp_path / "runs/lenet5/seed3/train/x"
    written.parent.mkdir(parents=True)
    written.touch()
    (written.parent / "metrics.json").write_text("{}")
    assert found.input("train", "x") == written
    nearer = tmp_path / "point/lenet5/seed3/train/x"
    nearer.parent.mkdir(parents=True)
    nearer.touch()
    (nearer.parent / "metrics.json").write_text("{}")
    found = folders(str(tmp_path / "point"), str(tmp_path / "runs"))
    assert found.input("train", "x") == nearer


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    message = (
        r"runs/lenet5/seed3/lobs/prune/x does not exist yet: run `lobs prune experiment=lenet5 seed=3 method=lobs`"
    )
    with pytest.raises(ValueError, match=message):
        folders(str(tmp_path / "point"), str(tmp_path / "runs")).input("prune", "x")


def test_commands_name_a_method_only_where_it_matters_and_an_own_network_by_its_class():
    assert folders().command("collect") == "lobs collect experiment=lenet5 seed=3"
    own = folders(name="Net", model={"_target_": "my_package.net.Net"})
    assert own.command("retrain") == "lobs retrain model._target_=my_package.net.Net seed=3 method=lobs"


def test_a_stage_without_a_method_or_a_network_has_folders_too():
    config = {"name": "lenet5", "seed": 0, "folders": {"output": None, "runs": "runs"}}
    assert Folders(config).output("train") == Path("runs/lenet5/seed0/train")
    assert Folders(config).command("train") == "lobs train experiment=lenet5 seed=0"


def test_a_folder_that_cannot_be_written_to_is_noticed_and_named(tmp_path, monkeypatch):
    writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    for code in (errno.ENOSPC, errno.EROFS):

        def refuse(*_, code=code):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(OSError, match=os.strerror(code)) as found:
            writable(tmp_path / "a/b")
        assert "a/b" in found.value.filename
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        writable(tmp_path / "file")


def test_training_is_not_begun_where_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data("data")
    (tmp_path / "runs").touch()
    monkeypatch.setattr("lobs_paper.training.fit.fit", None)
    for stage in ("train", "collect"):
        assert main([stage, *SMALL, "threads=1"]) in (1, 2)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("lobs: runs")


def test_what_a_killed_process_left_half_written_goes_and_what_a_living_one_writes_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"a.json.{ended.pid}.0a1b.partial", f"b.json.{os.getpid()}.0a1b.partial", "c.partial", "d.json"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f"e.{ended.pid}.0.partial").mkdir()
    writable(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names[1:], f"e.{ended.pid}.0.partial"])


def test_a_result_was_made_from_the_images_that_were_there_when_its_stage_began(tmp_path):
    config = {"name": "x", "seed": 0, "data": {"name": "mnist", "holdout": 0}, "model": {}}
    config["folders"] = {"output": None, "runs": str(tmp_path / "runs"), "data": str(tmp_path / "data")}
    write_data(tmp_path / "data", train=20, test=10)
    first, second = Folders(config), Folders(config)
    with first.result("train", {"error": 1}) as folder:
        save_tensors(folder / "model.safetensors", {"a": torch.zeros(2)})
    assert Folders(config).stale("train") is None
    write_data(tmp_path / "data", train=20, test=10, seed=2)
    with second.result("train", {"error": 1}):
        pass
    assert "was made from other images than data=mnist holds now: run `lobs train" in Folders(config).stale("train")


def test_a_result_ends_when_the_next_one_begins(tmp_path):
    found = folders(runs=str(tmp_path))
    for error in (1, 2):
        with found.result("train", {"error": error}) as folder:
            assert not (folder / "metrics.json").exists()
        assert json.loads((folder / "metrics.json").read_text())["error"] == error
    with pytest.raises(KeyboardInterrupt), found.result("train", {"error": 3}):
        raise KeyboardInterrupt
    assert (
        folders(runs=str(tmp_path))
        .stale("train")
        .endswith("train holds no finished result: run `lobs train experiment=lenet5 seed=3` again")
    )
