"""Table 1 beside the paper: numbers, verdicts, what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pandas import DataFrame

from helpers.runs import EVERY, write_json, write_runs
from lobs_paper.report import paper, table1
from lobs_paper.report.frame import load_results
from lobs_paper.report.markdown import markdown
from lobs_paper.report.rules import explained
from lobs_paper.report.statistic import Statistic, fixed, significant, statistic, whole


def rows_of(runs: Path, experiment: str = "lenet300") -> DataFrame:
    rows = table1.compare(load_results(runs))
    return rows[rows["experiment"] == experiment]


def row_of(runs: Path, label: str, experiment: str = "lenet300") -> dict[str, str]:
    """A row of the table; a column that follows its paper's is called "<column>, ours"."""
    table = table1.table1(rows_of(runs, experiment))
    columns = list(table.columns)
    names = [columns[i - 1].replace("paper", "ours") if c == "ours" else c for i, c in enumerate(columns)]
    return next(
        dict(zip(names, row, strict=True)) for row in table.itertuples(index=False, name=None) if row[0] == label
    )


def test_numbers_over_seeds() -> None:
    assert statistic([None, float("nan")]) == Statistic() or not statistic([None, float("nan")])
    assert (statistic([3, None]).mean, statistic([3, None]).count) == (3.0, 1)
    both = statistic([1.0, 3.0])
    assert (both.mean, both.deviation, both.low, both.high) == (2.0, pytest.approx(2**0.5), 1.0, 3.0)
    assert [fixed(None), fixed(float("nan")), whole(Statistic())] == ["-"] * 3
    assert (fixed(both), fixed(statistic([3])), fixed(statistic([2.0, 2.0]))) == ("2.00 ± 1.41", "3.00", "2.00")
    assert significant(statistic([0.0012365, 0.0012375])) == "0.00124 ± 7.1e-07"
    assert significant(statistic([12345.0, 12545.0])) == "12,445 ± 141", "no exponent for large numbers"
    assert whole(140000.0) == "140,000"


def test_the_papers_figures_stand_beside_ours(tmp_path: Path) -> None:
    assert row_of(write_runs(tmp_path), "L-OBS") == {
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


def test_every_row_of_the_paper_and_our_further_methods_are_listed(tmp_path: Path) -> None:
    names = ("exact_obs", "magnitude", "lwc")
    runs = write_runs(tmp_path, methods={name: EVERY[name] for name in names})
    labels = ["Random", "OBD", "LWC (magnitude, one shot)", "LWC", "DNS", "L-OBS", "L-OBS iterative", "exact OBS"]
    assert list(rows_of(runs)["label"]) == labels
    assert (row_of(runs, "L-OBS")["verdict"], row_of(runs, "L-OBS")["after pruning %, ours"]) == ("not run", "-")
    assert row_of(runs, "DNS")["after pruning %, paper"] == "-"
    assert row_of(runs, "LWC")["iterations, paper"] == row_of(runs, labels[2])["iterations, paper"] == "140,000"
    exact = row_of(runs, "exact OBS")
    assert (exact["after pruning %, paper"], exact["verdict"]) == ("-", "no such row in the paper")
    tiny = write_runs(tmp_path / "tiny", "tiny")
    assert list(rows_of(tiny, "tiny")["label"]) == ["LWC (magnitude, one shot)", "L-OBS"]


def test_several_seeds_give_mean_and_spread(tmp_path: Path) -> None:
    row = row_of(write_runs(tmp_path, seeds=(0, 1)), "L-OBS")
    assert (row["after pruning %, ours"], row["after retraining %, ours"]) == ("3.80 ± 0.71", "1.85")
    assert row["iterations, ours"] == "515 ± 7"
    assert row["verdict"].startswith("**not reproduced**: after pruning not reproduced (+0.70 points)")


def test_without_retraining_there_are_dashes(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    (runs / "lenet300/seed0/lobs/retrain/metrics.json").unlink()
    row = row_of(runs, "L-OBS")
    assert [row[key] for key in ("after retraining %, ours", "iterations, ours", "until original error")] == ["-"] * 3
    assert row["verdict"] == "**reproduced**: after pruning reproduced (+0.20 points)"


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
    runs = write_runs(tmp_path)
    path = runs / "lenet300/seed0/lobs/retrain/metrics.json"
    outcome = {"error_after_pruning_percent": pruned, "error_after_retraining_percent": retrained, "density": density}
    write_json(path, {**json.loads(path.read_text()), **outcome})
    assert row_of(runs, "L-OBS")["verdict"].startswith(verdict)


def test_provenance_marks_follow_the_paper_page() -> None:
    verified = [(row.experiment, row.method, row.verified) for row in paper.TABLE1 if row.verified]
    assert verified == [("lenet5", "lobs", ("iterations",)), ("alexnet", "lobs", ("after_pruning",))]
    assert verified and next(row.source for row in paper.TABLE1 if row.verified).endswith(
        "iterations: paper (verified)"
    )


def test_records_keep_full_precision(tmp_path: Path) -> None:
    records = table1.table1_records(rows_of(write_runs(tmp_path, seeds=(0, 1))))
    lobs = records.set_index("method").loc["lobs"]
    assert lobs["error_after_pruning_percent"] == pytest.approx(3.8)
    assert lobs["error_after_pruning_deviation"] == pytest.approx(0.5**0.5)
    assert (lobs["error_after_pruning_paper_percent"], lobs["seeds"], lobs["seeds_at_original"]) == (3.10, 2, 2)
    assert "**" not in lobs["verdict"]


def test_iterations_until_the_original_error() -> None:
    assert table1.until_original(statistic([]), 0) == "-"
    assert table1.until_original(statistic([None]), 2) == "not reached"
    assert table1.until_original(statistic([100, None]), 2) == "100 (1 of 2 seeds)"
    assert table1.until_original(statistic([100, 102]), 2) == "101 ± 1"


def test_the_first_page_has_every_row_of_the_paper(tmp_path: Path) -> None:
    results = load_results(write_runs(tmp_path))
    rows = explained(results, table1.compare(results))
    assert list(rows["experiment"]) == [row.experiment for row in paper.TABLE1], "two of ours stand for two of these"
    text = markdown(table1.summary_table(rows), ("method", "source", "verdict", "why"))
    assert "| LeNet-300-100 | L-OBS | 7 | 3.10 | 3.30 | +0.20 | 1.82 | 1.85 | +0.03 | r | **reproduced** | - |" in text
    assert "| LeNet-5 | L-OBS | 7 | 3.21 | - | - | 1.27 | - | - | r, v | not run | - |" in text
    assert "| AlexNet | DNS | 5.7 | - | - | - | 43.91 | - | - | r | not run | needs the ImageNet data set |" in text


def test_markdown_escapes_bars() -> None:
    table = DataFrame({"name": ["|w|"], "value": ["1"]})
    assert markdown(table).splitlines() == ["| name | value |", "| --- | ---: |", "| \\|w\\| | 1 |"]
