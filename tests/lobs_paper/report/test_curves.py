from __future__ import annotations

from pathlib import Path

import pytest
from pandas import DataFrame

from helpers.runs import EVERY, METHODS, write_csv, write_runs
from lobs_paper.report.curves import at_density, distinct, over_seeds_note, panels_of
from lobs_paper.report.frame import Results, load_results


def results_of(root: Path, **curves: dict[int, float | None]) -> Results:
    """Methods by name, with the error of a curve of one point by seed; None for a seed without a curve."""
    for name, seeds in curves.items():
        for seed, error in seeds.items():
            write_runs(root, seeds=(seed,), methods={name: METHODS["lobs"]})
            path = root / f"lenet300/seed{seed}/{name}/prune/density_curve.csv"
            points = [] if error is None else [(0.07, error, 1.0)]
            write_csv(path, ("density", "test_error_percent", "output_error"), points)
    return load_results(root)


def drawn(curve: DataFrame) -> dict[str, list[int]]:
    return {method: list(rows["seed"]) for method, rows in curve.groupby("method", sort=False)}


def test_methods_with_one_curve_are_joined_over_their_seeds(tmp_path: Path) -> None:
    found = results_of(tmp_path, exact_obs={0: 3.0}, exact_obs_iterative={0: 3.0, 1: 4.0, 2: 5.0}, lobs={0: 6.0})
    kept, note = distinct(found.density_curve)
    assert drawn(kept) == {"lobs": [0], "exact_obs": [0, 1, 2]}
    assert note == " exact OBS iterative has the same curve as exact OBS."
    assert "over those of all methods where several have one curve" in over_seeds_note(kept, found.runs)


@pytest.mark.parametrize("iterative", [{0: 3.0, 1: 9.0}, {2: 3.0}])
def test_other_curves_and_other_seeds_are_other_lines(tmp_path: Path, iterative: dict[int, float]) -> None:
    kept, note = distinct(results_of(tmp_path, lobs={0: 3.0, 1: 4.0}, lobs_iterative=iterative).density_curve)
    assert drawn(kept) == {"lobs": [0, 1], "lobs_iterative": list(iterative)}
    assert note == ""


def test_seeds_and_methods_without_a_curve_are_left_out(tmp_path: Path) -> None:
    found = results_of(tmp_path, lobs={0: 3.0, 1: None}, magnitude={0: None})
    kept, note = distinct(found.density_curve)
    assert (drawn(kept), note, over_seeds_note(kept, found.runs)) == ({"lobs": [0]}, "", "")
    assert distinct(found.density_curve.iloc[:0])[0].empty


def test_several_twins_are_named_in_one_sentence(tmp_path: Path) -> None:
    names = ("exact_obs", "exact_obs_sequential", "exact_obs_iterative")
    _, note = distinct(results_of(tmp_path, **{name: {0: 3.0} for name in names}).density_curve)
    assert note == " exact OBS sequential and exact OBS iterative have the same curve as exact OBS."


def test_many_methods_are_shared_out_between_two_panels() -> None:
    curve = DataFrame({"method": list(EVERY), "label": list(EVERY)})
    layer_wise, others = panels_of(curve)
    assert {*layer_wise["method"]} & {*others["method"]} == {"lobs"}
    assert len(layer_wise) + len(others) == len(curve) + 1
    assert len(panels_of(layer_wise.iloc[:3])) == len(panels_of(layer_wise)) == 1, "few, and all of one kind"


@pytest.mark.parametrize(
    ("asked", "found"), [(0.07, 0.07), (0.0712, 0.07), (0.0688, 0.07), (0.073, None), (0.009, 0.0089), (0.0093, None)]
)
def test_the_nearest_point_counts_within_two_percent(asked: float, found: float | None) -> None:
    curve = DataFrame({"label": "a", "seed": 0, "density": [0.07, 0.0089]})
    assert list(at_density(curve, asked)["density"]) == ([found] if found else [])
    assert at_density(curve.iloc[:0], asked).empty
