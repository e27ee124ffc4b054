"""The report: tables, figures and a page, made from the metrics files of the stages and from nothing else.

results.py loads the files into dataclasses, restored.py takes curves that are not here from the last report; tables.py,
table2.py, density.py, costs.py, storage.py turn them into rows (comparison.py: beside the paper's figures of paper.py,
reasons.py, why.py and remarks.py say why they differ); figures*.py draw them (selection.py says which, drawing.py how).
page.py writes everything and composes the first page (with summary.py and findings.py), network_page.py a page per
network, side_pages.py those of single tables, interactive/ the HTML; stale.py removes what an earlier report left.
benchmarks/ write into the same folder: their pages are linked, and some of their tables drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(runs_dir: Path, reports_dir: Path, further_runs: Sequence[Path] = ()) -> list[Path]:
    """Write the report over whatever experiments, seeds and methods it finds; remove stale files of an earlier one.

    The same metrics files give the same bytes; only timings.*, methods.* and storage.* follow the clock. Curves
    that are missing are those of the earlier report, if it had them (restored.py).

    Args:
        runs_dir: folder of the runs, `<runs_dir>/<experiment>/seed<k>/...`.
        reports_dir: folder to write into; created when it is missing.
        further_runs: more folders of runs, which need not exist.

    Returns:
        The files written, README.md first.

    Raises:
        ValueError: no metrics in any folder, a broken file, or a run that is there twice (named in the message).
    """
    from lobs_paper.report.page import write_pages  # matplotlib is imported only when a report is written
    from lobs_paper.report.restored import restore
    from lobs_paper.report.results import load_results

    experiments = load_results(Path(runs_dir), [Path(folder) for folder in further_runs])
    return write_pages(restore(experiments, Path(reports_dir)), Path(reports_dir))


__all__ = ["write_report"]
