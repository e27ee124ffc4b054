from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from helpers.runs import write_json, write_runs
from lobs_paper.report import paper, tables
from lobs_paper.report.comparison import compare
from lobs_paper.report.results import Experiment, load_results
from lobs_paper.report.statistic import Statistic, fixed, over_seeds, significant, whole


def load(tmp_path: Path, experiment: str = "lenet300", seeds: tuple[int, ...] = (0,)) -> Experiment:
    return load_results(write_runs(tmp_path / "runs", experiment, seeds))[0]


def row_of(table: tables.Table, label: str) -> dict[str, str]:
    """A row by its first cell; a column that follows its paper's is called "<column>, ours"."""
    names = [table.columns[i - 1].replace("paper", "ours") if c == "ours" else c for i, c in enumerate(table.columns)]
    return next(dict(zip(names, row, strict=True)) for row in table.rows if row[0] == label)


def test_numbers_over_seeds() -> None:
    assert over_seeds([None, None]) is None
    assert over_seeds([3, None]) == Statistic(3.0, None, 1)
    assert over_seeds([1.0, 3.0]) == Statistic(2.0, pytest.approx(2**0.5), 2)
    assert fixed(None) == "-"
    assert fixed(over_seeds([1.0, 3.0])) == "2.00 ± 1.41"
    assert fixed(over_seeds([2.0, 2.0])) == "2.00", "no spread where the seeds agree"
    assert significant(over_seeds([0.0012365, 0.0012375])) == "0.00124 ± 7.1e-07"
    assert significant(over_seeds([12345.0, 12545.0])) == "12,445 ± 141", "no exponent for large numbers"
    assert whole(140000.0) == "140,000"


def test_table1_holds_the_papers_figures_beside_ours(tmp_path: Path) -> None:
    row = row_of(tables.table1(load(tmp_path)), "L-OBS")
    assert row == {
        "method": "L-OBS",
        "original error %, paper": "1.76",
        "original error %, ours": "1.70",
        "density %, paper": "7",
        "density %, ours": "7",
        "after pruning %, paper": "3.10",
        "after pruning %, ours": "3.30",
        "after retraining %, paper": "1.82",
        "after retraining %, ours": "1.85",
        "iterations, paper": "510",
        "iterations, ours": "510",
        "until original error": "400",
        "source of the paper's figures": "paper (recalled)",
        "verdict": "**reproduced**: after pruning reproduced (+0.20 points); "
        "after retraining reproduced (+0.03 points); with 1 times the paper's iterations",
    }


def test_table1_lists_every_row_of_the_paper_and_our_further_methods(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs") / "lenet300/seed0"
    (folder / "lobs").rename(folder / "exact_obs")
    for path in (folder / "exact_obs").rglob("metrics.json"):
        write_json(path, {**json.loads(path.read_text()), "method": "exact_obs"})
    table = tables.table1(load_results(tmp_path / "runs")[0])
    labels = [row[0] for row in table.rows]
    assert labels == ["Random", "OBD", "LWC (magnitude, one shot)", "DNS", "L-OBS", "L-OBS iterative", "exact OBS"]
    assert row_of(table, "L-OBS")["verdict"] == "not run"
    assert row_of(table, "L-OBS")["after pruning %, ours"] == "-"
    assert row_of(table, "DNS")["after pruning %, paper"] == "-"
    exact = row_of(table, "exact OBS")
    assert (exact["after pruning %, paper"], exact["after pruning %, ours"]) == ("-", "3.30")
    assert (exact["source of the paper's figures"], exact["verdict"]) == ("-", "no such row in the paper")


def test_table1_gives_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    row = row_of(tables.table1(load(tmp_path, seeds=(0, 1))), "L-OBS")
    assert row["after pruning %, ours"] == "3.80 ± 0.71"
    assert row["after retraining %, ours"] == "1.85"
    assert row["iterations, ours"] == "515 ± 7"
    assert row["verdict"].startswith("**not reproduced**: after pruning not reproduced (+0.70 points)")


def test_table1_without_retraining_shows_dashes(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    (runs / "lenet300/seed0/lobs/retrain/metrics.json").unlink()
    row = row_of(tables.table1(load_results(runs)[0]), "L-OBS")
    assert row["after pruning %, ours"] == "3.30"
    assert [row[key] for key in ("after retraining %, ours", "iterations, ours", "until original error")] == ["-"] * 3
    assert row["verdict"] == "**reproduced**: after pruning reproduced (+0.20 points)"


def test_both_forms_of_lwc_stand_beside_the_papers(tmp_path: Path) -> None:
    methods = load(tmp_path).methods
    iterative = dataclasses.replace(methods[0], method="lwc", folder="lwc")
    experiment = Experiment("lenet300", {}, [*methods, iterative], [])
    row = row_of(tables.table1(experiment), "LWC")
    assert (row["after pruning %, paper"], row["iterations, paper"]) == ("81.32", "140,000")


@pytest.mark.parametrize(
    ("density", "pruned", "retrained", "verdict"),
    [
        (0.07, 2.5, 1.60, "**better**: after pruning better (-0.60 points); after retraining better (-0.22 points)"),
        (0.07, 2.5, 1.82, "**reproduced**: after pruning better (-0.60 points); after retraining reproduced (+0.00"),
        (0.07, 3.1, 2.10, "**not reproduced**: after pruning reproduced (+0.00 points); after retraining not repro"),
        (0.05, 3.1, 1.82, "not judged: density 5% against 7%"),
    ],
)
def test_verdicts(tmp_path: Path, density: float, pruned: float, retrained: float, verdict: str) -> None:
    runs = write_runs(tmp_path / "runs")
    path = runs / "lenet300/seed0/lobs/retrain/metrics.json"
    outcome = {"error_after_pruning_percent": pruned, "error_after_retraining_percent": retrained, "density": density}
    write_json(path, {**json.loads(path.read_text()), **outcome})
    rows = {row.method: row for row in compare(load_results(runs)[0])}
    assert rows["lobs"].verdict.startswith(verdict)


def test_a_baseline_that_does_better_than_in_the_paper_is_said_to(tmp_path: Path) -> None:
    rows = {row.method: row for row in compare(load(tmp_path))}
    assert "after pruning better (-24.32 points)" in rows["magnitude"].verdict
    assert "with 0.029 times the paper's iterations" in rows["magnitude"].verdict


def test_provenance_marks_follow_the_paper_page() -> None:
    verified = [(row.experiment, row.method, row.verified) for row in paper.TABLE1 if row.verified]
    assert verified == [("lenet5", "lobs", ("iterations",)), ("alexnet", "lobs", ("after_pruning",))]
    lenet5 = next(row for row in paper.TABLE1 if row.verified)
    assert lenet5.source == "paper (recalled); iterations: paper (verified)"


def test_an_experiment_that_the_paper_does_not_have_is_shown_without_its_columns(tmp_path: Path) -> None:
    table = tables.table1(load(tmp_path, "tiny"))
    assert [row[0] for row in table.rows] == ["LWC (magnitude, one shot)", "L-OBS"]
    assert row_of(table, "L-OBS")["density %, paper"] == "-"


def test_table1_records_match_their_header_and_keep_full_precision(tmp_path: Path) -> None:
    records = tables.table1_records([load(tmp_path, seeds=(0, 1))])
    assert all(tuple(record) == tables.TABLE1_COLUMNS for record in records)
    lobs = next(record for record in records if record["method"] == "lobs")
    assert lobs["error_after_pruning_percent"] == pytest.approx(3.8)
    assert lobs["error_after_pruning_deviation"] == pytest.approx(0.5**0.5)
    assert lobs["error_after_pruning_paper_percent"] == 3.10
    assert (lobs["seeds"], lobs["seeds_at_original"]) == (2, 2)
    assert "**" not in lobs["verdict"]


def test_iterations_until_the_original_error() -> None:
    assert tables.until_original([]) == "-"
    assert tables.until_original([None, None]) == "not reached"
    assert tables.until_original([100, None]) == "100 (1 of 2 seeds)"
    assert tables.until_original([100, 102]) == "101 ± 1"


def test_layers(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    magnitude, lobs = (tables.layer_table(runs) for runs in experiment.methods)
    assert lobs.rows[0] == ("fc1", "300x784", "7", "16,464", "50", "0.125", "0.002", "100", "1e-06")
    assert magnitude.rows[1][6] == "-", "magnitude has no sensitivities"
    records = tables.layer_records([experiment])
    assert len(records) == 2 * 3
    assert all(tuple(record) == tables.LAYER_COLUMNS for record in records)
    assert records[4]["kept"] == 2100


def test_the_layers_of_all_methods_stand_in_one_table(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "lenet5", seeds=(0, 1))
    (runs / "lenet5/seed1/lobs/evaluate/metrics.json").unlink()
    table = tables.layers_table(load_results(runs)[0])
    names = ("conv1", "conv2", "fc1", "fc2")
    assert table.columns == ("method", "all %", *(f"{name} %" for name in names), *(f"{n} relative E" for n in names))
    assert table.rows[1] == ("L-OBS", "7", *["7"] * 4, *["0.12"] * 4)
    for path in runs.rglob("lobs/*/*.json"):
        if path.name == "layers.json" or path.parent.name == "evaluate":
            path.unlink()
    assert [row[0] for row in tables.layers_table(load_results(runs)[0]).rows] == ["LWC (magnitude, one shot)"]


def test_bound_against_measured_error(tmp_path: Path) -> None:
    experiment = load(tmp_path, seeds=(0, 1))
    assert tables.bound_table(experiment).rows[1] == ("L-OBS", "4.5 ± 0.71", "400", "90 ± 14", "yes")
    records = tables.bound_records([experiment])
    assert [record["bound_over_error"] for record in records[2:]] == [100.0, 80.0]


def test_a_bound_that_does_not_hold_is_shown(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["output_error"] = 401.0
    write_json(path, data)
    assert tables.bound_table(load_results(runs)[0]).rows[1][-1] == "no"


def test_methods_that_were_not_evaluated_have_dashes(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for stage in ("evaluate", "retrain"):
        (runs / "lenet300/seed0/lobs" / stage / "metrics.json").unlink()
    experiment = load_results(runs)[0]
    assert tables.bound_table(experiment).rows[1] == ("L-OBS", "-", "-", "-", "-")
    assert tables.retraining_table(experiment).rows[1] == ("L-OBS", *["-"] * 7)


def test_retraining_round_by_round(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    path = runs / "lenet300/seed0/magnitude/retrain/metrics.json"
    data = json.loads(path.read_text())
    first = {"round": 1, "density": 0.5, "error_after_pruning_percent": 2.0, "error_after_retraining_percent": 1.5}
    data["rounds"] = [{**first, "iterations": 1000}, {**data["rounds"][0], "round": 2, "iterations": 3000}]
    write_json(path, data)
    experiment = load_results(runs)[0]
    name = "LWC (magnitude, one shot)"
    summary = (name, "2", "8", "57.00", "2.60", "4,000", "not reached", "yes")
    assert tables.retraining_table(experiment).rows[0] == summary
    assert tables.rounds_table(experiment).rows == [
        (name, "1", "50", "2.00", "1.50", "1,000"),
        (name, "2", "8", "57.00", "2.60", "3,000"),
    ]
    assert [record["round"] for record in tables.retraining_records([experiment])] == [1, 2, 1]


def test_timings_come_in_the_order_of_the_stages(tmp_path: Path) -> None:
    table = tables.timing_table(load(tmp_path, seeds=(0, 1)))
    assert [row[:2] for row in table.rows] == [
        ("train", "-"),
        ("collect", "-"),
        ("prune", "lobs"),
        ("retrain", "lobs"),
        ("evaluate", "lobs"),
        ("prune", "magnitude"),
        ("retrain", "magnitude"),
        ("evaluate", "magnitude"),
    ]
    assert table.rows[2][2:] == ("3.0", "600", "fc1", "2.50", "CPU, 2 threads")
    assert table.rows[0][4:6] == ("-", "-")


def test_spread_over_the_seeds(tmp_path: Path) -> None:
    table = tables.spread_table(load(tmp_path, seeds=(0, 1, 2)))
    assert row_of(table, "L-OBS") == {
        "method": "L-OBS",
        "seeds": "0, 1, 2",
        "after pruning %": "4.30 ± 1.00",
        "after pruning %, least": "3.30",
        "after pruning %, largest": "5.30",
        "after retraining %": "1.85",
        "after retraining %, least": "1.85",
        "after retraining %, largest": "1.85",
    }
    assert tables.spread_table(load(tmp_path / "one")).rows == [], "nothing is spread over one seed"


def test_markdown_escapes_bars() -> None:
    markdown = tables.Table(("name", "value"), [("|w|", "1")]).markdown()
    assert markdown.splitlines() == ["| name | value |", "| --- | ---: |", "| \\|w\\| | 1 |"]
