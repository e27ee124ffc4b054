"""`lobs estimate`: what is left, by the configuration and by what was timed."""

from __future__ import annotations

import shutil

import pytest

from helpers.stages import SMALL
from lobs_paper.cli import main
from lobs_paper.stages.estimate import Layer, Rates, estimate, multiplications, seconds, stored

MATRIX = """
datasets: [mnist]
experiments: [lenet300]
seeds: [0]
runs: [lenet300/seed0/lobs, lenet300/seed0/obd]
"""
RATES = Rates(0.5, 2.0, 1e-6, [Layer(10, 100, 4)], 1010, 50)
CONFIG = {
    "device": "cpu",
    "density": 0.5,
    "density_grid": [0.5, 0.2],
    "collect": {"images": 20, "augmented_copies": 2, "images_per_pass": 10},
    "method": {"solver": "magnitude", "options": {}, "correct": "none", "rounds": None, "allocation": "relative"},
    "retrain": {"iterations": 100, "batch_size": 8, "measure_every": 50},
}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("train", 3 * 50 * 0.5),
        ("collect", 40 * (0.5 + 4 * 100**2 * 1e-6)),
        ("prune", ((3 + 2 + 1) * 50 + 3 * 5000) * 0.5),
        ("retrain", 100 * 8 * 2.0 + (2 + 2) * 50 * 0.5),
        ("evaluate", (3 * 50 + 2 * 40) * 0.5),
    ],
)
def test_a_stage_takes_its_passes_and_its_steps(stage, expected):
    assert seconds(stage, CONFIG, RATES) == pytest.approx(expected)


def test_rounds_train_as_often_and_collect_between(monkeypatch):
    method = {**CONFIG["method"], "rounds": [0.8]}
    alone = seconds("retrain", CONFIG, RATES)
    assert seconds("retrain", {**CONFIG, "method": method}, RATES) == pytest.approx(2 * alone + 10 * 0.54)
    by_thresholds = {**method, "allocation": "lwc"}
    assert seconds("retrain", {**CONFIG, "method": by_thresholds}, RATES) == pytest.approx(2 * alone)


@pytest.mark.parametrize(
    ("solver", "options", "layer", "expected"),
    [
        ("lobs", {}, Layer(96, 10, 1), 2 * 10**3),
        ("lobs", {"resolve": True}, Layer(6, 10, 1), 10**3 + 2 * 6 * 5**3 / 3),
        ("exact_obs", {}, Layer(3, 10, 1), 3 * 10**3),
        ("exact_obs", {"group_size": "auto"}, Layer(3, 10, 1), 3 * 10**3),
        ("exact_obs", {"group_size": "auto"}, Layer(4096, 9216, 1), 9216**3 + 4096 * 2 / 3 * 9216 * 512**2),
    ],
)
def test_a_solvers_multiplications(solver, options, layer, expected):
    assert multiplications({"solver": solver, "options": options}, layer, 0.5, 2) == pytest.approx(expected)


def test_the_files_are_networks_masks_and_second_moments():
    found = [stored(stage, RATES) for stage in ("train", "collect", "prune", "retrain", "evaluate")]
    assert found == [4040, 80_000, 5040, 5040, 0]


def test_finished_stages_count_nothing_and_a_solver_is_timed(project, monkeypatch, tmp_path, capsys):
    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copytree(project / "runs", tmp_path / "runs")
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    monkeypatch.chdir(tmp_path)
    assert main(["resolve", *SMALL]) == 0
    shutil.rmtree("runs/lenet300/seed0/lobs/prune")
    found = estimate(["lenet300/seed0/lobs"])
    left = {row["stage"].removeprefix("lenet300/seed0/"): row["hours"] for row in found["rows"] if row["hours"]}
    assert left.keys() == {"lobs/prune"}
    assert found["gib"] > 0
    assert "with DVC's copies" in capsys.readouterr().out
    assert main(["estimate", "lenet5/seed0/lobs"]) == 2
    assert "lenet300/seed0/obd" in capsys.readouterr().err
