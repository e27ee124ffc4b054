from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import EVERY, write_json, write_runs
from lobs_paper.report.remarks import remarks
from lobs_paper.report.results import load_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", methods={name: EVERY[name] for name in ("lobs", "lobs_resolve")})


def remark(runs: Path) -> str:
    (text,) = remarks(load_results(runs)[0])
    return text


def test_what_re_solving_means_is_said_where_it_was_done(runs: Path, tmp_path: Path) -> None:
    assert remark(runs).startswith("L-OBS re-solved removes the weights of a layer in L-OBS's order")
    assert remarks(load_results(write_runs(tmp_path / "without"))[0]) == []


def test_the_masks_are_l_obss_only_where_every_layer_keeps_as_much(runs: Path) -> None:
    assert remark(runs).endswith("so that its masks are L-OBS's.")
    path = runs / "lenet300/seed0/lobs_resolve/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["layers"][2]["density"] = 0.355
    write_json(path, data)
    assert "its masks are" not in remark(runs)
    assert remark(runs).endswith("share the budget out differently (seed 0): fc3 keeps 35.5% instead of 7%.")


def test_without_l_obs_or_a_shared_seed_nothing_is_compared(runs: Path) -> None:
    write_runs(runs, seeds=(1,), methods={"lobs": EVERY["lobs"]})
    for path in (runs / "lenet300/seed0/lobs").rglob("metrics.json"):
        path.unlink()
    assert remark(runs).endswith("damped as L-OBS's inverse is.")


def test_what_was_left_alone_and_decided_is_said(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", methods={"lobs": EVERY["lobs"]})
    path = runs / "lenet300/seed0/lobs/prune/metrics.json"
    data = json.loads(path.read_text())
    write_json(path, {**data, "unpruned_share": 0.125, "notes": ["allocation='global' gave way to 'uniform'"]})
    share, note = remarks(load_results(runs)[0])
    assert share == "L-OBS, seed 0: 12.5% of the network's weights were not pruned."
    assert note == "L-OBS, seed 0: allocation='global' gave way to 'uniform'."
