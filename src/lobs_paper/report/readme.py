"""The numbers that the project's README.md quotes: written between two marks of it, so that none is typed by hand."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from lobs_paper.report.output import write_text

BEGIN, END = "<!-- numbers: written by the report stage -->", "<!-- end of numbers -->"
# Written by benchmarks/wall_clock.py.
WALL_CLOCK = "wall_clock.csv"
# Rows of Table 1 that the README shows.
METHODS = ("lobs", "lobs_iterative", "exact_obs_sequential")
NETWORKS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
_HEADER = (
    "| test error % | density % | dense | pruned | the paper's | retrained | the paper's |",
    "|---|---:|---:|---:|---:|---:|---:|",
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
    if not readme.exists():
        return False
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return False
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    lines = [*_HEADER, *_rows(_read(reports_dir / "table1.csv")), "", *_durations(reports_dir, commands or {})]
    new = f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}"
    if new != text:
        write_text(readme, new)
    return new != text


def _rows(table: list[dict[str, str]]) -> list[str]:
    lines = []
    for row in table:
        if row["experiment"] in NETWORKS and row["folder"] in METHODS:
            numbers = (
                f"{float(row['density_percent']):.3g}",
                *(
                    _number(row, key)
                    for key in (
                        "original_error_percent",
                        "error_after_pruning_percent",
                        "error_after_pruning_paper_percent",
                        "error_after_retraining_percent",
                        "error_after_retraining_paper_percent",
                    )
                ),
            )
            lines.append(f"| {NETWORKS[row['experiment']]}, {row['label']} | {' | '.join(numbers)} |")
    return lines


def _number(row: Mapping[str, str], key: str) -> str:
    """An error, with its deviation over the seeds where there are several."""
    deviation = row.get(key.replace("_percent", "_deviation"))
    if not row[key]:
        return "-"
    return f"{float(row[key]):.2f}" + (f" ± {float(deviation):.2f}" if deviation else "")


def _durations(reports_dir: Path, commands: Mapping[str, Iterable[str]]) -> list[str]:
    timings = _read(reports_dir / "timings.csv")
    whole = {row["command"]: row for row in _read(reports_dir / WALL_CLOCK)}
    lines = []
    for command, names in commands.items():
        runs = set(names)
        if command in whole:
            row = whole[command]
            measured = f"{float(row['minutes']):.0f} minutes on {row['cores']} CPU cores, from a clone to the report"
            lines.append(
                f"`{command}`: {row['runs']} runs in {measured}, measured in one piece at commit {row['commit']}."
            )
            continue
        seeds = {run.rsplit("/", 1)[0] for run in runs}
        rows = [
            row
            for row in timings
            if (seed := f"{row['experiment']}/seed{row['seed']}") in seeds
            and (not row["folder"] or f"{seed}/{row['folder']}" in runs)
        ]
        if rows:
            minutes = sum(float(row["total"]) for row in rows) / 60
            machine = " and ".join(sorted({f"{row['device']}, {row['threads']} threads" for row in rows}))
            computed = f"{len(runs)} runs, whose stages computed for {minutes:.0f} minutes ({machine})"
            lines.append(f"`{command}`: {computed}; the start of their processes and the curves come on top.")
    return lines


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
