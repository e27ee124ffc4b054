"""The figures of other papers on one-shot pruning beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import EVERY, METHODS, write_csv, write_runs
from lobs_paper.report import literature, pages
from lobs_paper.report.frame import load_results

COLUMNS = ("density", "test_error_percent", "output_error")
REFIT = ("test_error_after_refit_percent", "output_error_after_refit")
METHODS_RUN = {"magnitude": METHODS["magnitude"], "exact_obs_staged": EVERY["exact_obs_staged"]}


def write_network(root: Path, experiment: str) -> Path:
    """Two methods on two seeds, measured at 10 and 3%."""
    write_runs(root, experiment, (0, 1), METHODS_RUN)
    for seed in (0, 1):
        folder = root / experiment / f"seed{seed}"
        write_csv(folder / "magnitude/prune/density_curve.csv", COLUMNS, [(0.1, 20.0 + seed, 1.0), (0.03, 60.0, 1.0)])
        points = [(0.1, 3.0, 1.0, 2.0, 0.5), (0.03, 9.0, 1.0, 4.0, 0.5)]
        write_csv(folder / "exact_obs_staged/prune/density_curve.csv", (*COLUMNS, *REFIT), points)
    return root


def test_published_accuracies_stand_above_ours_and_are_marked_as_recalled(tmp_path: Path) -> None:
    results = load_results(write_network(tmp_path, "mlpnet"))
    table = literature.literature_table(results)
    assert list(table.columns) == ["method", "seeds", "dense", "10%", "5%", "2%", "source"]
    lines = list(table.itertuples(index=False, name=None))
    first = literature.PUBLISHED[0]
    assert lines[0] == (first.label, "-", f"{first.dense:.2f}", *(f"{a:.2f}" for a in first.accuracies), lines[0][-1])
    assert all(line[-1].startswith("r, ") for line in lines[:4])
    assert lines[4:] == [
        ("LWC (magnitude, one shot)", "2", "98.30", "79.50 ± 0.71", "-", "-", "this pipeline"),
        ("exact OBS staged", "2", "98.30", "97.00", "-", "-", "this pipeline"),
        ("exact OBS staged, refit", "2", "98.30", "98.00", "-", "-", "this pipeline"),
    ]


def test_a_network_without_published_figures_has_its_own_densities(tmp_path: Path) -> None:
    results = load_results(write_network(tmp_path, "resnet20"))
    table = literature.literature_table(results)
    assert list(table.columns) == ["method", "seeds", "dense", "10%", "3%", "source"]
    assert list(table["3%"]) == ["40.00", "91.00", "96.00"]
    assert literature.published(results) == []


def test_records_hold_what_was_measured_elsewhere_too(tmp_path: Path) -> None:
    write_network(tmp_path, "mlpnet")
    records = literature.literature_records(load_results(write_network(tmp_path, "resnet20")))
    elsewhere = records[records["source"] == "ours, on the published network"]
    assert len(elsewhere) == 6 and elsewhere["seeds"].isna().all()
    ours = records[(records["source"] == "this pipeline") & (records["experiment"] == "resnet20")]
    assert list(ours["accuracy_percent"]) == [79.5, 40.0, 97.0, 91.0, 98.0, 96.0]
    assert ours["accuracy_deviation"].iloc[0] == pytest.approx(0.5**0.5)
    assert set(ours["dense_accuracy_percent"]) == {98.3}


def test_the_page_is_there_only_where_one_of_these_networks_was_run(tmp_path: Path) -> None:
    assert "literature" not in pages._further(load_results(write_runs(tmp_path / "plain")))
    results = load_results(write_network(tmp_path / "runs", "mlpnet"))
    assert pages._further(results)["literature"] == pages.LITERATURE
    own = {
        "heading": "MLPNet",
        "literature": literature.literature_table(results),
        "published": literature.published(results),
    }
    page = pages.render("literature", networks=[own], further=pages._further(results))
    code = next(entry for entry in literature.PUBLISHED if not entry.source)
    assert f"not by this pipeline: {code.label} {' / '.join(f'{a:.2f}' for a in code.accuracies)}%; our exact" in page
    assert "Source: r, recalled from the published tables and not verified." in page
    alone = pages.render("literature", networks=[{**own, "published": []}], further=pages._further(results))
    assert "recalled" not in alone and "earlier" not in alone
