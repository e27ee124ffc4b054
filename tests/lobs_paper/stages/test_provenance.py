"""A later stage goes on with results of just what it is asked for, or says in a line which stage is to run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.stages import STAGES, TINY, lobs, write_data
from lobs_paper.cli import main
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.results import CHECKSUM, DIGEST, MADE_FROM, read_result
from lobs_paper.stages.provenance import other_settings, settings
from lobs_paper.stages.run import run_stage

RUN = Path("runs/lenet300/seed0")
MARKERS = {"train": RUN / "train", "collect": RUN / "collect"}
MARKERS |= {stage: RUN / "magnitude" / stage for stage in ("prune", "retrain", "evaluate")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which every stage has run once."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data("data", train=60, test=30)
        for stage in STAGES:
            lobs(stage, *TINY)
    return folder


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, stage, *words):
    """The line with which a stage refuses to run."""
    assert main([stage, *TINY, *words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("stage", "word", "made_by", "before"),
    [
        ("prune", "collect.images=30", "collect", "null"),
        ("evaluate", "collect.images=30", "collect", "null"),
        ("prune", "collect.augmented_copies=2", "collect", "1"),
        ("collect", "data.mean=[0.5]", "train", "[]"),
        ("prune", "train.learning_rate=0.3", "train", "0.1"),
        ("retrain", "exclude=[fc1]", "prune", "[]"),
        ("retrain", "method.correct=bias", "prune", "none"),
        ("evaluate", "density=0.5", "prune", "0.2"),
        ("evaluate", "retrain.iterations=7", "retrain", "3"),
    ],
)
def test_other_settings_than_those_of_an_earlier_stage_are_refused(
    finished, monkeypatch, capsys, stage, word, made_by, before
):
    monkeypatch.chdir(finished)
    message, key = refused(capsys, stage, word), word.split("=")[0]
    expected = f"{word} was asked for, but {MARKERS[made_by]} was made with {key}={before}: run `lobs {made_by} "
    assert expected in message
    command = message.split("`")[1].replace("'", "")
    assert {word, "threads=1"} <= set(command.split()), "what was typed, beside what is asked for"


@pytest.mark.parametrize("word", ["threads=2", "memory=1", "collect.batch_size=9", "retrain.measure_every=2"])
def test_what_changes_no_result_is_free(finished, monkeypatch, word):
    monkeypatch.chdir(finished)
    assert main(["evaluate", *TINY, word]) == 0


def test_other_images_are_noticed(copied, capsys):
    write_data("data", train=60, test=30, seed=2)
    message = refused(capsys, "evaluate")
    assert "runs/lenet300/seed0/train was made from other images than data=mnist holds now: run `lobs train " in message


@pytest.mark.parametrize(
    ("again", "words", "then", "stale"),
    [
        ("train", ["train.epochs=2"], "prune", "collect"),
        ("collect", ["collect.images=30"], "retrain", "prune"),
        ("prune", ["density=0.5"], "evaluate", "retrain"),
    ],
)
def test_a_result_of_another_one_is_refused_by_hand_and_under_dvc(copied, capsys, again, words, then, stale):
    assert main([again, *TINY, *words]) == 0
    message = refused(capsys, then, *words)
    assert str(MARKERS[stale]) in message and f"run `lobs {stale} " in message
    with pytest.raises(ValueError, match=f"was made from another result of {again}"):
        run_stage(then, stage_config(load([*TINY, *words]), then))


def test_a_rerun_that_gives_the_same_changes_nothing_for_the_others(copied):
    for stage in ("train", "prune", "evaluate"):
        before = (MARKERS[stage] / "metrics.json").read_bytes()
        lobs(stage, *TINY)
        assert (MARKERS[stage] / "metrics.json").read_bytes() == before


def test_a_result_without_its_metrics_is_unfinished(copied, capsys):
    (MARKERS["prune"] / "metrics.json").unlink()
    message = refused(capsys, "evaluate")
    assert f"{MARKERS['prune']} holds no finished result: run `lobs prune experiment=lenet300" in message


def test_files_of_another_result_beside_the_metrics_are_noticed(copied, capsys):
    shutil.copy(MARKERS["retrain"] / "model.safetensors", MARKERS["prune"])
    assert "prune/metrics.json is about other files than lie beside it: run `lobs prune " in refused(capsys, "evaluate")


@pytest.mark.parametrize("stage", ["train", "collect", "prune", "retrain"])
def test_damaged_metrics_are_a_line(copied, capsys, stage):
    file = MARKERS[stage] / "metrics.json"
    whole = file.read_bytes()
    for spoiled in (whole[:-20], b"", b"[1]", b"\xff", b"[" * 9999, whole.replace(b"0", b"1", 1)):
        file.write_bytes(spoiled)
        message = refused(capsys, "evaluate")
        assert f"{file}" in message and f"run `lobs {stage} " in message


def test_results_of_an_earlier_version_are_taken_with_a_note(copied, capsys):
    for folder in MARKERS.values():
        metrics = json.loads((folder / "metrics.json").read_text())
        old = {key: value for key, value in metrics.items() if key not in (MADE_FROM, DIGEST, CHECKSUM)}
        (folder / "metrics.json").write_text(json.dumps(old))
    capsys.readouterr()
    lobs("evaluate", *TINY)
    printed = capsys.readouterr().out
    for stage in STAGES[:-1]:
        note = f"{MARKERS[stage]}/metrics.json is of an earlier version and does not say what it was made from"
        assert printed.count(note) == 1


def test_the_settings_of_a_pruning_are_its_budget_and_not_what_follows():
    rounds = load(["method=lobs_iterative", "density=0.015"])
    first = settings("prune", stage_config(rounds, "prune"))
    assert first["density"] == rounds["method"]["rounds"][0]
    assert not {"method.rounds", "folders.runs", "threads", "tolerance"} & first.keys()
    assert settings("retrain", stage_config(rounds, "retrain"))["density"] == 0.015


def test_settings_differ_by_their_values_and_a_missing_one_is_null():
    assert other_settings({"a": 1, "b": None}, {"a": 1, "c": None}) is None
    assert other_settings({"a": ["x"], "b": 3}, {"a": ["x", "y"]}) == ("a=[x,y]", "a=[x]"), "what both have says most"
    kept = "collect.kept_samples"
    assert other_settings({kept: 2000}, {kept: 0}) is None
    assert other_settings({kept: 0}, {kept: 2000}) == (f"{kept}=2000", f"{kept}=0")
    assert other_settings({"a": 1, "density": 0.1}, {"a": 1, "flops": 0.2}) == (
        "flops=0.2 density=null",
        "flops=null density=0.1",
    )


def test_tables_that_were_exchanged_are_refused(copied, capsys):
    path = MARKERS["prune"] / "layers.json"
    path.write_text(path.read_text().replace("fc1", "fc2", 1))
    assert f"{path} is not the file that was written with metrics.json: run `lobs prune" in refused(capsys, "evaluate")


def test_statistics_of_an_earlier_version_are_refused_once_the_network_was_trained_anew(copied, capsys):
    for stage in ("train", "collect", "prune"):
        path = MARKERS[stage] / "metrics.json"
        metrics = json.loads(path.read_text())
        del metrics[MADE_FROM]
        path.write_text(json.dumps(metrics))
    lobs("retrain", *TINY)
    lobs("train", *TINY)
    assert "collect/metrics.json is of an earlier version, and train was run again since" in refused(capsys, "prune")


def test_reports_leave_out_what_an_earlier_pruning_led_to(copied, capsys):
    folder = RUN / "magnitude"
    assert read_result(folder, "evaluate") and read_result(folder, "retrain")
    lobs("prune", *TINY, "density=0.5")
    capsys.readouterr()
    assert read_result(folder, "prune")["requested"] == {"density": 0.5}
    assert read_result(folder, "retrain") == read_result(folder, "evaluate") == {}
    assert "retrain/metrics.json was made from another result of prune than lies there now" in capsys.readouterr().out
    lobs("compare", "runs")
    row = (Path("comparison.csv").read_text()).splitlines()[1]
    assert "density=0.5,0.5" in row
    path = folder / "prune/metrics.json"
    path.write_text(path.read_text().replace('"density": 0.5', '"density": 0.1'))
    with pytest.raises(ValueError, match=r"metrics\.json is damaged, it has another checksum"):
        read_result(folder, "prune")
