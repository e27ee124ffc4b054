"""`lobs compare`: one row per result, whatever mixture of folders is given; a folder without results is named."""

from __future__ import annotations

import csv
import json

import pytest

from helpers.stages import SMALL
from lobs_paper.cli import main


@pytest.fixture(scope="module")
def swept(project):
    """A sweep over two densities and a seed without a network."""
    assert main(["prune", "-m", "density=0.3,0.6", "hydra.sweep.dir=multirun/two", "seed=0,5", *SMALL]) == 1
    return project


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metrics(path):
    return json.loads(path.read_text())


def test_runs_and_points_of_sweeps_stand_in_one_table(swept, tmp_path, capsys):
    assert main(["compare", "runs", "multirun/two", "--output", str(tmp_path / "all")]) == 0
    rows = read(tmp_path / "all.csv")
    assert [row["method"] for row in rows] == ["dns", "lobs", "lobs_iterative", "lwc", "lobs", "lobs"]
    assert capsys.readouterr().out.count("│ lenet300") == len(rows)
    assert [row["requested"] for row in rows[4:]] == ["density=0.3", "density=0.6"]
    assert all(row["model.hidden"] == "[16,8]" for row in rows[4:])
    assert all(row["model.hidden"] == "" for row in rows[:4])
    lines = (tmp_path / "all.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_row_holds_what_the_stages_wrote(swept, tmp_path):
    assert main(["compare", "runs/lenet300/seed0/lobs", "--output", str(tmp_path / "one")]) == 0
    (row,) = read(tmp_path / "one.csv")
    folder = swept / "runs/lenet300/seed0/lobs"
    prune, retrain, evaluate = (metrics(folder / stage / "metrics.json") for stage in ("prune", "retrain", "evaluate"))
    for key in ("error_before_percent", "error_after_pruning_percent", "density"):
        assert float(row[key]) == prune[key] == retrain[key]
    assert float(row["error_after_retraining_percent"]) == retrain["error_after_retraining_percent"]
    assert (row["seed"], row["iterations"]) == ("0", str(retrain["iterations"]))
    assert float(row["output_error"]) == evaluate["pruned"]["output_error"]
    seconds = [metrics(folder / stage / "timings.json")["total"] for stage in ("prune", "retrain")]
    assert float(row["seconds"]) == pytest.approx(sum(seconds), abs=1e-3)


def test_rounds_are_named_as_such(swept, tmp_path):
    assert main(["compare", "runs/lenet300/seed0/lobs_iterative", "--output", str(tmp_path / "rounds")]) == 0
    (row,) = read(tmp_path / "rounds.csv")
    rounds = metrics(swept / "runs/lenet300/seed0/lobs_iterative/retrain/metrics.json")["rounds"]
    first = metrics(swept / "runs/lenet300/seed0/lobs_iterative/prune/metrics.json")["requested"]["density"]
    assert row["requested"] == f"density={first} in the first of {len(rounds)} rounds"
    assert float(row["density"]) == rounds[-1]["density"]


def test_a_result_that_two_folders_hold_is_shown_once_and_equal_rows_keep_their_folders(swept, tmp_path, capsys):
    (point,) = (swept / "multirun/two").glob("*density=0.3,*/lenet300/seed0/lobs")
    words = ["multirun/two", str(point), str(point / "prune"), "runs/lenet300/seed0/lobs"]
    assert main(["compare", *words, "--output", str(tmp_path / "some")]) == 0
    assert len(read(tmp_path / "some.csv")) == 3


def test_a_point_says_what_was_overridden_and_why_it_failed(swept):
    points = [metrics(path) for path in (swept / "multirun/two").glob("*/point.json")]
    assert sorted((point["point"]["density"], point["point"]["seed"]) for point in points) == [
        (density, seed) for density in ("0.3", "0.6") for seed in ("0", "5")
    ]
    assert all(("does not exist yet" in str(point["error"])) == (point["point"]["seed"] == "5") for point in points)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compare needs one or more folders of results"),
        (["runs", "nowhere"], "nowhere is no folder"),
        (["runs", "data"], "data holds no results: expected <method>/prune/metrics.json"),
        (["runs", "-m"], "unknown option -m: accepted are --output NAME and folders"),
        (["runs", "--output"], "--output needs the name of a file"),
    ],
)
def test_a_mistake_ends_on_one_line_and_writes_nothing(swept, capsys, words, message):
    assert main(["compare", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (swept / "comparison.csv").exists()


def test_a_broken_metrics_file_is_named(tmp_path, capsys):
    file = tmp_path / "x/seed0/lobs/prune/metrics.json"
    file.parent.mkdir(parents=True)
    for text, message in (("{", "not valid JSON"), ("[]", "expected an object, got []"), ("{}", "'experiment'")):
        file.write_text(text)
        assert main(["compare", str(tmp_path)]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert str(file.parent.parent) in shown


@pytest.mark.parametrize("output", ["/", ""])
def test_an_output_without_a_name_is_refused(output, capsys):
    assert main(["compare", "runs", "--output", output]) == 2
    assert "is not accepted: the name of two files" in capsys.readouterr().err
