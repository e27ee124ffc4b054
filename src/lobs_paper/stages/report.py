"""Stage report: tables, figures and the page, from the metrics files; README and MLflow are brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lobs_paper.config.yaml_files import read_yaml
from lobs_paper.progress import waiting
from lobs_paper.report import write_report
from lobs_paper.report.readme import fill_readme
from lobs_paper.stages import track

MATRIX = Path("conf/matrix.yaml")
# Targets of the Makefile, and the lists of the matrix that say what they run.
TARGETS = {"repro": "runs", "repro-quick": "quick"}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Write the report.

    Args:
        config: what `STAGE_KEYS["report"]` lists.

    Returns:
        The number of files written and of MLflow runs.
    """
    names = config["folders"]
    further = [Path(folder) for folder in names["further_runs"]]
    with waiting("writing the report"):
        written = write_report(Path(names["runs"]), Path(names["reports"]), further)
    matrix = read_yaml(MATRIX) if MATRIX.exists() else {}
    reports = Path(names["reports"])
    commands = {f"make {target}": matrix.get(name, ()) for target, name in TARGETS.items()}
    fill_readme(reports.parent / "README.md", reports, commands)
    return {"page": str(written[0]), "files": len(written), **track.run(config)}
