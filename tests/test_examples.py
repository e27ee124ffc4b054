"""The programs of examples/ run as they are given, on less than they take by themselves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_a_sentence_encoder_understands_more_where_inputs_are_looked_at(monkeypatch, capsys):
    words = ["sentence_encoder.py", "--methods", "magnitude", "wanda", "--calibration", "60"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLES / "sentence_encoder.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[next(i for i, line in enumerate(lines) if "paraphrases" in line) + 1 :]]
    assert rows[0][:2] == ["dense", "1.0"]
    cosines = {(" ".join(row[:-6]), float(row[-6])): float(row[-2]) for row in rows[1:]}
    assert len(cosines) == 6
    assert cosines["magnitude", 0.5] < cosines["wanda", 0.5]
    assert cosines["magnitude", 0.3] < cosines["wanda", 0.3]
    assert cosines["magnitude 2:4", 0.5] < cosines["wanda 2:4", 0.5]
