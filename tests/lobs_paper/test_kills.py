"""Killed at any rename, into a fresh folder or over another result: the rerun gives the bytes of a run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.stages import STAGES, TINY, write_data
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.data.splits import Fetched
from lobs_paper.stages import fetch
from lobs_paper.stages.prerequisites import refuse_stale
from lobs_paper.stages.run import run_stage

RUNS = Path("runs")


class Killed(BaseException):
    """What no code of ours may catch."""


@pytest.fixture
def kill(monkeypatch):
    """Sets the number of renames after which there is no other."""
    left, rename = [0], Path.replace

    def replace(path, target):
        if path.name.startswith("probe."):  # tries the folder out and changes nothing
            return rename(path, target)
        left[0] -= 1
        if left[0] == 0:
            raise Killed(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    return lambda count: left.__setitem__(0, count)


def contents(folder):
    """The bytes of every file but durations, by its name."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "timings.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By density: the folder of runs after every stage, in their order, and the configuration."""
    made = {}
    for density in (0.2, 0.5):
        folder = tmp_path_factory.mktemp("runs")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            write_data("data", train=40, test=20)
            config = load([*TINY, f"density={density}", f"train.epochs={1 if density == 0.2 else 2}"])
            states = {}
            for stage in STAGES:
                run_stage(stage, stage_config(config, stage))
                shutil.copytree(RUNS, f"after_{stage}")
                states[stage] = contents(RUNS)
            made[density] = (folder, config, states)
    return made


@pytest.mark.parametrize("over", [False, True], ids=["fresh", "over another result"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_rename_is_made_again_and_never_mixed(runs, tmp_path, monkeypatch, kill, stage, over):
    monkeypatch.chdir(tmp_path)
    folder, config, states = runs[0.2]
    other, others, _ = runs[0.5]
    shutil.copytree(folder / "data", "data")
    before, after = (STAGES[: STAGES.index(stage)], STAGES[STAGES.index(stage) + 1 :])
    killed = 0
    for count in range(1, 99):
        shutil.rmtree(RUNS, ignore_errors=True)
        if before:
            shutil.copytree(folder / f"after_{before[-1]}", RUNS)
        if over:  # the other run's results of this stage and the later ones
            for place in (other / "runs").rglob("*"):
                if place.is_dir() and place.name in (stage, *after):
                    shutil.copytree(place, RUNS / place.relative_to(other / "runs"))
        kill(count)
        try:
            run_stage(stage, stage_config(config, stage))
        except Killed:
            killed += 1
        else:
            break
        finally:
            kill(0)
        for later in after:  # none of them may take what is there for a result of its own configuration or of the other
            for asked in (config, others):
                with pytest.raises(ValueError, match="run `lobs"):
                    refuse_stale(later, asked)
                    run_stage(later, stage_config(asked, later))
        run_stage(stage, stage_config(config, stage))
        found = contents(RUNS)
        assert {name: found.get(name) for name in states[stage]} == states[stage]
        assert not list(RUNS.rglob("*.partial"))
    assert killed >= 2


def test_a_data_set_killed_at_any_rename_is_none(tmp_path, monkeypatch, kill):
    import torch

    def pictures(seed):
        images = torch.full((4, 3, 3), seed, dtype=torch.uint8)
        return Fetched(str(seed), {split: {"images": images, "labels": images[:, 0, 0]} for split in fetch.SPLITS})

    for over in (False, True):
        for count in range(1, 99):
            shutil.rmtree(tmp_path / "data", ignore_errors=True)
            if over:
                fetch.store(pictures(1), str(tmp_path / "data"), "folder", {"root": "one"})
            kill(count)
            try:
                fetch.store(pictures(2), str(tmp_path / "data"), "folder", {"root": "two"})
            except Killed:
                assert not (tmp_path / "data/folder/test.safetensors").exists()
            else:
                break
            finally:
                kill(0)
        assert count == 4
