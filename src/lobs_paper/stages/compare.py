"""`lobs compare <folder>...`: one table over any result folders, runs of the pipeline and points of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lobs_paper.config.errors import ConfigError
from lobs_paper.config.requested import BUDGETS
from lobs_paper.files import read_object, write_csv, write_text
from lobs_paper.report.plain import escaped, plain
from lobs_paper.results import read_result
from lobs_paper.stages.folders import POINT
from lobs_paper.stages.printing import cell, print_table

STAGES = ("prune", "retrain", "evaluate")
# Where the files go without --output: <name>.csv and <name>.md in the working directory.
OUTPUT = Path("comparison")
COLUMNS = (
    *("experiment", "method", "seed", "requested", "density", "error_before_percent", "error_after_pruning_percent"),
    *("error_after_retraining_percent", "iterations", "output_error", "seconds"),
)


def compare(folders: Sequence[str], output: Path = OUTPUT) -> list[dict[str, Any]]:
    """Print a table of all results below some folders and write it as CSV and Markdown.

    Args:
        folders: run folders (`runs`, `runs/<experiment>/seed<k>/<method>` or anything between), folders of sweeps and
            of their points; a result found twice is shown once.
        output: of the two files, without the ending.

    Returns:
        The rows, one per experiment, seed, method and point: `COLUMNS` (None where a stage has not run), the overrides
        of sweep points, the folder.

    Raises:
        ConfigError: no folder is given, one does not exist, or holds no results.
    """
    if not folders:
        raise ConfigError("compare needs one or more folders of results, such as runs or multirun/methods")
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: give folders of results, such as runs or multirun/methods")
        results = result_folders(folder)
        if not results:
            raise ConfigError(f"{folder} holds no results: expected <method>/prune/metrics.json or the like below it")
        for result in results:
            found.setdefault(result.resolve(), result)
    rows = [_row(folder) for folder in found.values()]
    varied = dict.fromkeys(key for row in rows for key in row if key not in (*COLUMNS, "folder"))
    columns = [*COLUMNS, *varied, "folder"]
    values = {key: {str(row[key]) for row in rows if row.get(key) is not None} for key in columns}
    # The files keep everything; what all points have in common would fold the table.
    shown = [key for key in columns if len(values[key]) > (key in varied)]
    if len({tuple(str(row.get(key)) for key in (*COLUMNS[:4], *varied)) for row in rows}) == len(rows):
        shown.remove("folder")  # long, and not needed to tell the rows apart
    print_table("lobs compare", [{key: row.get(key) for key in shown} for row in rows])
    write_csv(output.with_name(f"{output.name}.csv"), rows, columns)
    write_text(output.with_name(f"{output.name}.md"), markdown(rows, [key for key in columns if values[key]]))
    print(f"{len(rows)} results, in {output}.csv and {output}.md")
    return rows


def result_folders(folder: Path) -> list[Path]:
    """The folders `.../<experiment>/seed<k>/<method>` at, above or below a folder that hold a stage's metrics."""
    return sorted({file.parent.parent for file in folder.rglob("metrics.json") if file.parent.name in STAGES})


def _row(folder: Path) -> dict[str, Any]:
    try:
        return row_of(folder)
    except (AttributeError, KeyError, TypeError) as error:  # a value of another type
        raise ConfigError(f"{folder}: its files are not what the stages write ({error})") from None


def row_of(folder: Path) -> dict[str, Any]:
    """What the files of one method's folder say.

    Args:
        folder: holds `prune/`, `retrain/` or `evaluate/`.

    Returns:
        A row of the table. The output error is that of the pruned network before retraining, so it is left out where
        several rounds led to the density.

    Raises:
        ConfigError: the files do not say whose result it is.
    """
    try:
        prune, retrain, evaluate = (plain(read_result(folder, stage)) for stage in STAGES)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not any(all(key in part for key in COLUMNS[:3]) for part in (retrain, prune, evaluate)):
        raise ConfigError(f"{folder} holds no result: its metrics.json name no {', '.join(map(repr, COLUMNS[:3]))}")
    outcome = retrain or prune
    measured = evaluate.get("pruned", {})
    budget = {key: value for key, value in prune.get("requested", {}).items() if key in BUDGETS}
    rounds = f" in the first of {len(retrain['rounds'])} rounds" if len(retrain.get("rounds", [])) > 1 else ""
    values = (
        *(next(part[key] for part in (retrain, prune, evaluate) if key in part) for key in COLUMNS[:3]),
        " ".join(f"{key}={value}" for key, value in budget.items()) + rounds or None,
        outcome.get("density", measured.get("density")),
        outcome.get("error_before_percent", evaluate.get("dense", {}).get("test_error_percent")),
        outcome.get("error_after_pruning_percent", measured.get("test_error_percent")),
        retrain.get("error_after_retraining_percent", evaluate.get("retrained", {}).get("test_error_percent")),
        retrain.get("iterations"),
        measured.get("output_error") if measured.get("density") == outcome.get("density") else None,
        _seconds(folder),
    )
    row = dict(zip(COLUMNS, values, strict=True))
    return {**{key: value for key, value in _point(folder).items() if key not in row}, **row, "folder": str(folder)}


def markdown(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a Markdown table."""
    texts = [list(columns), *([cell(row.get(key)) for key in columns] for row in rows)]
    head, *lines = (" | ".join(map(escaped, line)) for line in texts)
    return "".join(f"| {line} |\n" for line in (head, " | ".join(["---"] * len(columns)), *lines))


def _point(folder: Path) -> dict[str, str]:
    """The overrides of the sweep's point that a folder belongs to; none outside sweeps."""
    # <point>/<experiment>/seed<k>/<method>
    return _read(Path(*folder.resolve().parts[:-3]) / POINT).get("point", {})


def _seconds(folder: Path) -> float | None:
    """Of pruning and retraining; None where nothing was noted."""
    # Measuring costs time too, but not the method's.
    totals = [_read(folder / stage / "timings.json").get("total") for stage in ("prune", "retrain")]
    known = [total for total in totals if total is not None]
    return round(sum(known), 3) if known else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        return read_object(path, dict)
    except ValueError as error:
        raise ConfigError(str(error)) from None
