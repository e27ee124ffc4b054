"""The numbers between the marks of README.md."""

from __future__ import annotations

from pathlib import Path

from helpers.runs import EVERY, write_runs
from lobs_paper.report import write_report
from lobs_paper.report.readme import BEGIN, END, fill_readme


def test_numbers_and_durations_are_those_of_the_report(tmp_path: Path) -> None:
    write_report(write_runs(tmp_path / "runs", seeds=(0, 1), methods=EVERY), tmp_path / "reports")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    runs = [f"lenet300/seed0/{method}" for method in EVERY]
    commands = {"make repro": runs, "make repro-quick": runs[:1], "make nothing": ["lenet300/seed7/lobs"]}
    assert fill_readme(readme, tmp_path / "reports", commands)
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n\nTest errors on MNIST in percent")
    assert text.endswith(f"{END}\n\nThe rest.\n")
    assert "old" not in text
    assert "| LeNet-300-100, L-OBS | 7 | 1.70 ± 0.00 | 3.80 ± 0.71 | 3.10 | 1.85 ± 0.00 | 1.82 |" in text
    # 12.5 + 2 s for the dense network, then 3 + 8 s for each method; the second seed is none of these commands'.
    assert f"`make repro`: {len(EVERY)} runs, whose stages computed for 3 minutes (cpu, 2 threads); the start" in text
    assert "`make repro-quick`: 1 runs, whose stages computed for 0 minutes" in text
    assert "nothing" not in text
    assert not fill_readme(readme, tmp_path / "reports", commands), "a second time changes nothing"


def test_a_duration_measured_in_one_piece_is_stated_rather_than_the_sum(tmp_path: Path) -> None:
    write_report(write_runs(tmp_path / "runs"), tmp_path / "reports")
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    measured = "command,runs,minutes,cores,commit\nmake repro,40,41.4,2,abc1234\n"
    (tmp_path / "reports/wall_clock.csv").write_text(measured)
    fill_readme(readme, tmp_path / "reports", {"make repro": ["lenet300/seed0/lobs"]})
    text = readme.read_text()
    assert "`make repro`: 40 runs in 41 minutes on 2 CPU cores, from a clone to the report, measured in one" in text
    assert "abc1234" in text and "computed" not in text


def test_a_readme_without_marks_stays_as_it_is(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    assert not fill_readme(readme, tmp_path)
    readme.write_text("mine\n")
    assert not fill_readme(readme, tmp_path)
    assert readme.read_text() == "mine\n"


def test_without_a_report_the_marks_hold_no_numbers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n| 1 |\n{END}\n")
    fill_readme(readme, tmp_path / "missing")
    assert "| 1 |" not in readme.read_text()
    assert END in readme.read_text()
