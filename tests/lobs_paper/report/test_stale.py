from __future__ import annotations

from pathlib import Path

from lobs_paper.report.stale import MANIFEST, remove_stale


def write(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_text(name)
    return [folder / name for name in names]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_an_earlier_report_wrote_and_this_one_did_not_goes(tmp_path: Path) -> None:
    assert remove_stale(tmp_path, write(tmp_path, "README.md", "figure9.svg")) == []
    removed = remove_stale(tmp_path, write(tmp_path, "README.md", "figure2.svg"))
    assert [path.name for path in removed] == ["figure9.svg"]
    assert names(tmp_path) == {"README.md", "figure2.svg", MANIFEST}
    assert (tmp_path / MANIFEST).read_text() == "README.md\nfigure2.svg\nfiles.txt\n"


def test_files_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path, "notes.txt", "solvers.csv")
    remove_stale(tmp_path, write(tmp_path, "README.md"))
    remove_stale(tmp_path, write(tmp_path, "README.md"))
    assert names(tmp_path) == {"notes.txt", "solvers.csv", "README.md", MANIFEST}


def test_files_of_benchmarks_stay_even_if_a_report_listed_them(tmp_path: Path) -> None:
    benchmarks = ("solvers.md", "speed.txt", "large_layer.txt", "memory.csv", "allocation.csv", "allocation.md")
    remove_stale(tmp_path, write(tmp_path, *benchmarks, "old.csv"))
    assert [path.name for path in remove_stale(tmp_path, [])] == ["old.csv"]
    assert names(tmp_path) == {*benchmarks, MANIFEST}


def test_a_list_that_names_other_folders_removes_nothing_there(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    (folder / "kept").mkdir(parents=True)
    outside, inside = write(tmp_path, "outside.txt")[0], write(folder / "kept", "inside.txt")[0]
    (folder / MANIFEST).write_text(f"../outside.txt\n{outside}\nkept/inside.txt\nkept\n..\n\nmissing.csv\n")
    assert remove_stale(folder, []) == []
    assert outside.exists() and inside.exists()
