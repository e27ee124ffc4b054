"""The report: tables, figures and a page, made from the metrics files of the stages and from nothing else.

frame.py reads the files into frames; table1.py and table2.py set them beside the paper's figures (paper.py), rules.py
says why they differ, method_tables.py and layer_tables.py have the other tables, frontier.py and literature.py
those of pages of their own, curves.py and figures.py the figures.
pages.py writes everything, with the words of templates/, and interactive/ the HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(runs_dir: Path, reports_dir: Path, further_runs: Sequence[Path] = ()) -> list[Path]:
    """Write the report over whatever experiments, seeds and methods it finds; remove stale files of an earlier one.

    The same metrics files give the same bytes; only timings.*, methods.* and storage.* follow the clock.

    Args:
        runs_dir: folder of the runs, `<runs_dir>/<experiment>/seed<k>/...`.
        reports_dir: folder to write into; created when it is missing.
        further_runs: more folders of runs, which need not exist.

    Returns:
        The files written, README.md first.

    Raises:
        ValueError: no metrics in any folder, a broken file, or a run that is there twice (named in the message).
    """
    from lobs_paper.report.frame import load_results
    from lobs_paper.report.pages import write_pages  # matplotlib is imported only when a report is written

    return write_pages(load_results(Path(runs_dir), [Path(folder) for folder in further_runs]), Path(reports_dir))


__all__ = ["write_report"]
