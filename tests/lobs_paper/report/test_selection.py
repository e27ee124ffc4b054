from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import EVERY, METHODS, write_csv, write_runs
from lobs_paper.report.results import Experiment, MethodRuns, load_results
from lobs_paper.report.selection import distinct, over_seeds_note, panels_of


def experiment(root: Path, **curves: dict[int, float | None]) -> Experiment:
    """Methods by name, with the error of a curve of one point by seed; None for a seed without a curve."""
    for name, seeds in curves.items():
        for seed, error in seeds.items():
            write_runs(root, seeds=(seed,), methods={name: METHODS["lobs"]})
            path = root / f"lenet300/seed{seed}/{name}/prune/density_curve.csv"
            points = [] if error is None else [(0.07, error, 1.0)]
            write_csv(path, ("density", "test_error_percent", "output_error"), points)
    return load_results(root)[0]


def drawn(methods: list[MethodRuns]) -> dict[str, list[int]]:
    return {runs.method: [run.seed for run in runs.runs] for runs in methods}


def test_methods_with_one_curve_are_joined_over_their_seeds(tmp_path: Path) -> None:
    found = experiment(tmp_path, exact_obs={0: 3.0}, exact_obs_iterative={0: 3.0, 1: 4.0, 2: 5.0}, lobs={0: 6.0})
    kept, note = distinct(found, "density_curve")
    assert drawn(kept) == {"lobs": [0], "exact_obs": [0, 1, 2]}
    assert note == " exact OBS iterative has the same curve as exact OBS."
    assert "over those of all methods where several have one curve" in over_seeds_note(kept, found)


@pytest.mark.parametrize("iterative", [{0: 3.0, 1: 9.0}, {2: 3.0}])
def test_other_curves_and_other_seeds_are_other_lines(tmp_path: Path, iterative: dict[int, float]) -> None:
    kept, note = distinct(experiment(tmp_path, lobs={0: 3.0, 1: 4.0}, lobs_iterative=iterative), "density_curve")
    assert drawn(kept) == {"lobs": [0, 1], "lobs_iterative": list(iterative)}
    assert note == ""


def test_seeds_and_methods_without_a_curve_are_left_out(tmp_path: Path) -> None:
    found = experiment(tmp_path, lobs={0: 3.0, 1: None}, magnitude={0: None})
    kept, note = distinct(found, "density_curve")
    assert (drawn(kept), note) == ({"lobs": [0]}, "")
    assert over_seeds_note(kept, found) == ""


def test_several_twins_are_named_in_one_sentence(tmp_path: Path) -> None:
    names = ("exact_obs", "exact_obs_sequential", "exact_obs_iterative")
    _, note = distinct(experiment(tmp_path, **{name: {0: 3.0} for name in names}), "density_curve")
    assert note == " exact OBS sequential and exact OBS iterative have the same curve as exact OBS."


def test_many_methods_are_shared_out_between_two_panels() -> None:
    methods = [MethodRuns("lenet300", name, name, []) for name in EVERY]
    layer_wise, others = panels_of(methods)
    assert {runs.method for runs in layer_wise} & {runs.method for runs in others} == {"lobs"}
    assert len(layer_wise) + len(others) == len(methods) + 1
    assert panels_of(layer_wise[:3]) == [layer_wise[:3]]
    assert panels_of(layer_wise) == [layer_wise], "all of one kind"
