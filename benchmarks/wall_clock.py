"""Wall time of the README's commands, each in one piece from a fresh clone and an empty cache: reports/wall_clock.csv.

    python benchmarks/wall_clock.py repro-quick [repro]

The last commit is cloned beside nothing else: what is not committed does not count. The environment is this one's, so
that its installation is not in the time; the report is made at the end, as the commands do.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from lobs_paper.files import write_csv
from lobs_paper.stages.report import TARGETS

ROOT = Path(__file__).parents[1]
COLUMNS = ("command", "runs", "minutes", "cores", "commit")


def main() -> None:
    """Measure the targets one after the other; a row of an earlier measurement is replaced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+", choices=TARGETS)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "wall_clock.csv")
    parser.add_argument("--keep", type=Path, help="folder for the clones, which then stay")
    arguments = parser.parse_args()
    for target in arguments.targets:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(target, (arguments.keep or Path(folder)).resolve() / target)
        print(row, flush=True)
        rows = {entry["command"]: entry for entry in read(arguments.out)} | {row["command"]: row}
        write_csv(arguments.out, [rows[name] for name in sorted(rows)], COLUMNS)


def measure(target: str, clone: Path) -> dict[str, object]:
    """Clone, run and time one target.

    Args:
        target: of the Makefile, in `TARGETS`.
        clone: where to.

    Returns:
        A row of the file.
    """
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    environment = {**os.environ, "PYTHONPATH": str(clone / "src"), "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    runs = yaml.safe_load((clone / "conf/matrix.yaml").read_text())[TARGETS[target]]
    goals = [] if target == "repro" else [f"evaluate@{run}" for run in runs]
    start = time.perf_counter()
    subprocess.run(["dvc", "repro", *goals], cwd=clone, env=environment, check=True)
    if goals:
        subprocess.run(["lobs", "report"], cwd=clone, env=environment, check=True)
    minutes = (time.perf_counter() - start) / 60
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, check=True)
    return {
        "command": f"make {target}",
        "runs": len(runs),
        "minutes": round(minutes, 1),
        "cores": os.cpu_count(),
        "commit": commit.stdout.decode().strip(),
    }


def read(path: Path) -> list[dict[str, str]]:
    """The rows of earlier measurements."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
