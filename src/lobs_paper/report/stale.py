"""Removes what an earlier report wrote and this one did not, so that no page or figure outlives its data.

Only files that the earlier report listed as its own are ever removed, and never those of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from lobs_paper.report.output import write_text

# The report's own files, one name per line.
MANIFEST = "files.txt"
# What benchmarks/ write into the same folder.
BENCHMARK_FILES = (
    *("solvers.*", "speed.txt", "large_layer.txt", "memory.csv", "allocation.*", "figure1.csv"),
    *("imagenet_shapes.*", "wall_clock.csv"),
)


def remove_stale(folder: Path, written: Iterable[Path]) -> list[Path]:
    """Remove the files of an earlier report that this one did not write, and list this one's in `MANIFEST`.

    Args:
        folder: of the report.
        written: the files of this report, all in the folder.

    Returns:
        The files removed.
    """
    manifest = folder / MANIFEST
    names = sorted({path.name for path in written} | {MANIFEST})
    before = manifest.read_text(encoding="utf-8").split("\n") if manifest.exists() else []
    removed = []
    for name in sorted(set(before) - set(names)):
        path = folder / name
        # A name with a folder in it is none of ours: the report writes into one folder only.
        if name and name == path.name and path.is_file() and not any(fnmatchcase(name, own) for own in BENCHMARK_FILES):
            path.unlink()
            removed.append(path)
    write_text(manifest, "\n".join(names) + "\n")
    return removed
