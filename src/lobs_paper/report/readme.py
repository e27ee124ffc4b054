"""The numbers that the project's README.md quotes: written between two marks of it, so that none is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from lobs_paper.files import write_text
from lobs_paper.report.statistic import fixed, significant

BEGIN, END = "<!-- numbers: written by the report stage -->", "<!-- end of numbers -->"
# Written by benchmarks/wall_clock.py.
WALL_CLOCK = "wall_clock.csv"
# Rows of Table 1 that the README shows.
METHODS = ("lobs", "lobs_iterative", "exact_obs_sequential")
NETWORKS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
_HEADER = (
    "Test errors on MNIST in percent; ± is the sample standard deviation over the seeds (in reports/README.md).\n",
    "| | density % | dense | pruned | the paper's | retrained | the paper's |",
    "|---|---:|---:|---:|---:|---:|---:|",
)
_ERRORS = (
    *("original_error", "error_after_pruning", "error_after_pruning_paper"),
    *("error_after_retraining", "error_after_retraining_paper"),
)


def fill_readme(readme: Path, reports_dir: Path, commands: Mapping[str, Iterable[str]] | None = None) -> bool:
    """Write Table 1's headline rows and the stages' durations into the README.

    Args:
        readme: the file; without both marks it stays as it is.
        reports_dir: holds table1.csv and timings.csv, as the report writes them, and `WALL_CLOCK`.
        commands: the runs (`<experiment>/seed<k>/<method>`) that each command makes. Its duration is the one measured
            in one piece, or the sum of its stages where there is none.

    Returns:
        Whether the file was changed.
    """
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if BEGIN not in text or END not in text:
        return False
    head, tail = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
    lines = [*_HEADER, *_rows(_read(reports_dir / "table1.csv")), "", *_durations(reports_dir, commands or {})]
    new = f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}"
    if new != text:
        write_text(readme, new)
    return new != text


def _rows(table: DataFrame) -> Iterator[str]:
    for _, row in table.iterrows():
        if row["experiment"] in NETWORKS and row["folder"] in METHODS:
            errors = (_error(row[f"{name}_percent"], row.get(f"{name}_deviation")) for name in _ERRORS)
            numbers = " | ".join((significant(row["density_percent"]), *errors))
            yield f"| {NETWORKS[row['experiment']]}, {row['label']} | {numbers} |"


def _error(mean: float, deviation: float | None) -> str:
    """An error, with its deviation over the seeds where there are several."""
    return fixed(mean) if deviation is None or pd.isna(deviation) else f"{fixed(mean)} ± {fixed(deviation)}"


def _durations(reports_dir: Path, commands: Mapping[str, Iterable[str]]) -> Iterator[str]:
    timings, whole = _read(reports_dir / "timings.csv"), _read(reports_dir / WALL_CLOCK)
    for command, names in commands.items():
        runs = set(names)
        seeds = {run.rsplit("/", 1)[0] for run in runs}

        def made(row: Any, runs: set[str] = runs, seeds: set[str] = seeds) -> bool:
            seed = f"{row['experiment']}/seed{row['seed']}"
            return seed in seeds and (pd.isna(row["folder"]) or f"{seed}/{row['folder']}" in runs)

        measured = whole[whole["command"] == command] if len(whole) else whole
        own = timings[timings.apply(made, axis=1)] if len(timings) else timings
        if len(measured):
            row = measured.iloc[-1]
            minutes = f"{row['minutes']:.0f} minutes on {row['cores']} CPU cores, from a clone to the report"
            yield f"`{command}`: {row['runs']} runs in {minutes}, measured in one piece at commit {row['commit']}."
        elif len(own):
            machine = " and ".join(sorted({f"{row.device}, {row.threads} threads" for row in own.itertuples()}))
            computed = f"whose stages computed for {own['total'].sum() / 60:.0f} minutes ({machine})"
            yield f"`{command}`: {len(runs)} runs, {computed}; the start of their processes and the curves come on top."


def _read(path: Path) -> DataFrame:
    return pd.read_csv(path) if path.exists() else DataFrame()
