"""The error after a refit of the kept weights: beside the others where there was one, nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import EVERY, METHODS, write_json, write_runs
from lobs_paper.report import figures, findings, network_figures, table1
from lobs_paper.report import method_tables as tables
from lobs_paper.report.curves import with_refitted
from lobs_paper.report.frame import Results, load_results
from lobs_paper.report.interactive import tables as interactive
from lobs_paper.report.methods import STYLES, style_of
from lobs_paper.report.pages import _csv, render

STAGED = {"lobs": METHODS["lobs"], "exact_obs_staged": EVERY["exact_obs_staged"]}
LABEL = "exact OBS staged"


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 1), methods=STAGED)


def errors_of(results: Results) -> list[tuple[float, float, float]]:
    runs = results.runs[results.runs["label"] == LABEL]
    names = ["error_after_pruning", "error_after_refit", "error_after_retraining"]
    return list(runs[names].itertuples(index=False, name=None))


def test_pruning_is_before_the_refit_and_retraining_goes_on_from_it(runs: Path) -> None:
    assert errors_of(load_results(runs)) == [(2.0, 1.0, 1.6), (3.0, 1.5, 1.6)]
    for path in runs.rglob("retrain/metrics.json"):
        path.unlink()
    kept = [pair[:2] for pair in errors_of(load_results(runs))]
    assert kept == [(2.0, 1.0), (3.0, 1.5)], "the same without retraining"


def test_of_several_rounds_the_last_refit_is_known_and_the_pruning_before_it_is_not(runs: Path) -> None:
    path = runs / "lenet300/seed0/exact_obs_staged/retrain/metrics.json"
    last = json.loads(path.read_text())["rounds"][0]
    change(path, rounds=[last, {**last, "round": 2}], error_after_pruning_percent=1.3)
    pruned, refitted, _ = errors_of(load_results(runs))[0]
    assert pruned != pruned and refitted == 1.3


def test_tables_have_the_column_where_some_run_has_it(runs: Path) -> None:
    results = load_results(runs)
    row = tables.method_table(results).iloc[1]
    assert list(row[["after pruning %", "after refit %", "after retraining %"]]) == [
        *("2.50 ± 0.71", "1.25 ± 0.35", "1.60"),
    ]
    assert tables.method_table(results).iloc[0]["after refit %"] == "-"
    assert tables.method_records(results)["error_after_refit_percent"].iloc[1] == 1.25
    assert tables.retraining_table(results)["after refit %"].iloc[1] == "1.25 ± 0.35"
    assert tables.spread_table(results)["after refit %, largest"].iloc[1] == "1.50"
    rows = table1.compare(results)
    own = rows[rows["experiment"] == "lenet300"]
    table = table1.table1(own)
    assert list(table.columns[7:9]) == ["after refit %, ours", "after retraining %, paper"]
    assert table["after refit %, ours"].iloc[-1] == "1.25 ± 0.35"
    assert table1.table1_records(own)["error_after_refit_percent"].iloc[-1] == 1.25
    shown = interactive.comparison(own.assign(why="")).rows.set_index("label")
    assert shown.loc[LABEL, "refitted"] == 1.25


def test_the_top_five_of_a_refitted_network_stand_under_the_refit(runs: Path) -> None:
    for path in runs.rglob("evaluate/metrics.json"):
        data = json.loads(path.read_text())
        for name, error in (("dense", 3.0), ("pruned", 7.5), ("retrained", 5.0)):
            data[name]["test_top5_error_percent"] = error
        write_json(path, data)
    found = list(tables.top5_table(load_results(runs)).itertuples(index=False, name=None))
    assert found == [("L-OBS", "7", "3.00", "7.50", "-", "5.00"), (LABEL, "7", "3.00", "-", "7.50", "5.00")]


def test_the_refitted_curve_is_a_series_of_its_own(runs: Path) -> None:
    results = load_results(runs)
    curve = with_refitted(results.density_curve)
    labels = ["L-OBS", LABEL, f"{LABEL}, refit"]
    assert list(curve["label"].unique()) == labels
    pairs = [curve.loc[curve["label"] == label, "test_error_percent"].to_numpy() for label in labels[1:]]
    assert pairs[1] == pytest.approx(0.5 * pairs[0])
    assert list(tables.density_table(results)["method"]) == labels
    (entry,) = (entry for entry in figures.NETWORK if entry.draw is network_figures.density)
    (drawing,) = figures.draw([entry], results, runs)
    drawn = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert set(labels) < set(drawn)
    line = drawn[labels[2]]
    assert (line.get_color(), line.get_linestyle()) == (STYLES["exact_obs_staged"].color, "--")
    assert "test_error_after_refit_percent" in drawing.data
    assert style_of("exact_obs_staged+refit", "few+refit").label == f"{LABEL} [few], refit"


def test_the_first_page_says_what_the_refit_reaches(runs: Path) -> None:
    (row,) = findings.refits(load_results(runs))
    assert (row["label"], row["density"].mean) == (LABEL, pytest.approx(7.0))
    assert (row["error_after_pruning"].mean, row["error_after_refit"].mean) == (2.5, 1.25)
    own = write_runs(runs, "own", methods=STAGED)
    results = load_results(own)
    (ends,) = (entry["ends"] for entry in findings.headlines(results.of("own"), table1.compare(results)))
    assert [errors[0][0] for _, errors in ends] == [f"{LABEL}, refit"] * 2


def test_without_a_refit_its_keys_change_nothing(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    texts = []
    new = {"stages": [], "refit": None, "compared_allocations": {}, "shared_by": "global"}
    for keys in ({}, new):
        for path in runs.rglob("prune/metrics.json"):
            old = {name: value for name, value in json.loads(path.read_text()).items() if name not in new}
            write_json(path, {**old, **keys})
        for path in runs.rglob("density_curve.csv"):
            lines = path.read_text().splitlines()
            if keys:
                lines = [f"{lines[0]},test_error_after_refit_percent,output_error_after_refit"] + [
                    f"{line},," for line in lines[1:]
                ]
            path.write_text("\n".join(lines) + "\n")
        results = load_results(runs)
        tables_of = _csv(results, table1.compare(results))
        (curve,) = figures.draw(figures.NETWORK[:1], results, runs)
        assert not any("refit" in name for table in (*tables_of.values(), curve.data) for name in table.columns)
        texts.append([table.to_csv() for table in (*tables_of.values(), curve.data)])
    assert texts[0] == texts[1]
    page = render("methods", networks=[], refitted=False)
    assert "refit" not in page and "After refit:" in render("methods", networks=[], refitted=True)
