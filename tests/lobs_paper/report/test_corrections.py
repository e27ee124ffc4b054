from __future__ import annotations

import json
from pathlib import Path

from helpers.runs import write_json, write_runs
from lobs_paper.report import corrections
from lobs_paper.report.network_page import network_page
from lobs_paper.report.results import load_results


def test_the_page_shows_each_correction_and_which_was_made(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    for seed, error in ((0, 20.0), (1, 22.0)):
        path = runs / f"lenet300/seed{seed}/lobs/prune/metrics.json"
        found = {"none": error, "bias": 18.0, "batch_norm": 17.5, "both": 17.0}
        write_json(path, {**json.loads(path.read_text()), "correction": "both", "corrections": found})
    experiment = load_results(runs)[0]
    table = corrections.table(experiment)
    assert table.columns == (
        *("method", "as pruned", "biases corrected", "batch norms estimated anew", "both"),
        "made",
    )
    assert table.rows == [("L-OBS", "21.00 ± 1.41", "18.00", "17.50", "17.00", "both")]
    assert "## Corrections after pruning" in network_page(experiment, [])


def test_nothing_is_said_where_nothing_was_corrected(tmp_path: Path) -> None:
    experiment = load_results(write_runs(tmp_path / "runs"))[0]
    assert corrections.table(experiment).rows == []
    assert "Corrections after pruning" not in network_page(experiment, [])
