"""What a stage prints at its end."""

from __future__ import annotations

import pytest

from lobs_paper.stages.printing import cell, clock, flat, print_table, summary


def test_scalars_are_found_at_every_depth_and_lists_left_out():
    metrics = {"a": 1, "b": {"c": None, "d": {"e": "x"}, "rows": [1, 2]}, "rows": [{"f": 1}]}
    assert flat(metrics) == {"a": 1, "b.c": None, "b.d.e": "x"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1 / 3, "0.333333"), (12345678.0, "1.23457e+07"), (7, "7"), (True, "True"), ("x", "x")],
)
def test_numbers_have_six_digits(value, text):
    assert cell(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599.4, "0:59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_durations_are_read_like_a_clock(seconds, text):
    assert clock(seconds) == text


def test_a_table_has_a_column_for_every_key_of_any_row(capsys):
    print_table("numbers", [{"name": "a", "value": 1.5}, {"name": "b", "more": "x"}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "numbers"
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [["a", "1.5", "-"], ["b", "-", "x"]]
    assert all(word in lines[2] for word in ("name", "value", "more"))


def test_without_a_terminal_nothing_is_folded_at_80_columns(capsys):
    print_table("wide", [{f"a rather long heading {number}": number for number in range(5)}])
    assert "a rather long heading 4" in capsys.readouterr().out


def test_a_summary_shows_scalars_rows_and_sentences(capsys):
    summary("prune", {"density": 0.07, "layers": [{"name": "fc1", "kept": 3}], "notes": ["One.", "Two."], "none": []})
    shown = capsys.readouterr().out
    assert shown.index("lobs prune") < shown.index("density") < shown.index("layers") < shown.index("fc1")
    assert "notes: One.\nnotes: Two.\n" in shown
    assert "none" not in shown


def test_names_are_never_markup_of_the_terminal(capsys):
    print_table("[bold]runs[/]", [{"[red]layer": "[/x]", "other": "[link=http://x]y[/link]"}])
    said = capsys.readouterr().out
    assert all(text in said for text in ("[bold]runs[/]", "[red]layer", "[/x]", "[link=http://x]y[/link]"))
