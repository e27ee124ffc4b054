"""The layers of one network shared out between processes, whose paths `lobs prune` then finds."""

from __future__ import annotations

import shutil

import pytest

from helpers.stages import SMALL, lobs
from lobs.schedule import paths
from lobs_paper.cli import main

METHOD = ["method=exact_obs", "method.allocation=uniform", "density=0.2"]


def test_prune_finds_what_the_parts_have_factorised_and_gives_the_same_bytes(project, monkeypatch, capsys):
    words = [*SMALL, *METHOD]
    folder = project / "runs/lenet300/seed0/exact_obs"
    lobs("collect", *SMALL)
    lobs("prune", *words)
    expected = (folder / "prune/model.safetensors").read_bytes()
    shutil.rmtree(folder)
    assert main(["factorise", "-m", "part=1/2,2/2", *words]) == 0
    kept = {path.stem for path in (folder / "prune.partial").rglob("*.safetensors")}
    assert kept == {"fc1", "fc2", "fc3"} and not (folder / "prune/metrics.json").exists()
    shown = capsys.readouterr().out
    assert "1/2" in shown and "2/2" in shown

    def solve(*_):
        raise AssertionError("factorised once more")

    monkeypatch.setattr(paths, "solve", solve)
    lobs("prune", *words)
    assert (folder / "prune/model.safetensors").read_bytes() == expected
    assert not (folder / "prune.partial").exists()


def test_the_largest_layers_go_to_different_parts(project):
    words = [*SMALL, *METHOD]
    lobs("collect", *SMALL)
    folder = project / "runs/lenet300/seed0/exact_obs/prune.partial"
    assert main(["factorise", "part=2/3", *words]) == 0
    assert [path.stem for path in folder.rglob("*.safetensors")] == ["fc2"]
    assert main(["factorise", "part=4/4", *words]) == 0  # more parts than layers: nothing is left for the last one
    assert len(list(folder.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["part=3/2"], "part"),
        (["part=0/2"], "part"),
        (["part=half"], "2/4"),
        (["method=magnitude", "part=1/2"], "magnitude keeps nothing that takes long"),
    ],
)
def test_what_is_no_part_or_needs_none_is_refused(project, capsys, words, said):
    lobs("collect", *SMALL)
    assert main(["factorise", *SMALL, "density=0.2", *words]) == 2
    assert said in capsys.readouterr().err
