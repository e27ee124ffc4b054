"""Bars with the time that is left on a terminal (a pseudo-terminal here), a line now and then anywhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from io import StringIO

import pytest

from helpers.stages import SMALL
from lobs_paper.progress import Lines, progress

COUNT = """
import time
from lobs_paper.progress import progress, waiting
for _ in progress("layers")(range(6)):
    time.sleep(0.25)
with waiting("a download"):
    time.sleep(0.3)
"""
CLOCK = r"\d:\d\d:\d\d"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(words, folder):
    """What a command shows on a terminal, without the terminal's control sequences; its exit code."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(words, stdout=follower, stderr=follower, cwd=folder, env=environment)
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # the other side is closed
        pass
    os.close(leader)
    return ESCAPES.sub("", shown.decode(errors="replace")), process.wait()


def elsewhere(words, folder):
    """What the same command writes into a pipe; its exit code."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr, done.returncode


def lobs(*words):
    return [sys.executable, "-m", "lobs_paper.cli", *words, *SMALL]


def test_a_bar_shows_the_time_that_is_left_on_a_terminal_only(tmp_path):
    words = [sys.executable, "-c", COUNT]
    shown, code = on_a_terminal(words, tmp_path)
    assert code == 0
    assert re.search(rf"layers .*\d+% {CLOCK}", shown)
    assert re.search(rf"a download .*{CLOCK}", shown)
    assert elsewhere(words, tmp_path) == ("", 0)


def test_elsewhere_a_line_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr("lobs_paper.progress.time.monotonic", lambda: next(clock))
    assert list(progress("layers")(iter(range(8)), total=8)) == list(range(8))
    assert list(progress("batches")(each for each in range(3))) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["layers: 3 of 8 after 1 min, about 2 min left", "layers: 6 of 8 after 2 min, about 1 min left"]
    assert lines[2:] == ["batches: 3 after 1 min"]


def test_what_an_earlier_run_has_done_does_not_count_as_speed(monkeypatch, capsys):
    clock = iter((0, 60, 61))
    monkeypatch.setattr("lobs_paper.progress.time.monotonic", lambda: next(clock))
    lines = Lines("training", 200, begun=90)
    lines.at(100)
    lines.at(101)
    assert capsys.readouterr().err == "training: 100 of 200 after 1 min, about 10 min left\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("lobs_paper.progress.time.monotonic", lambda: 1000)
    lines.at(150)
    assert capsys.readouterr().err == ""


class Full(StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch):
    monkeypatch.setattr("lobs_paper.progress.EVERY", 0.0)
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress("layers")(range(3))) == [0, 1, 2]


@pytest.mark.slow
def test_pruning_and_sweeps_show_what_goes_on_and_end_with_a_table(project):
    words = lobs("prune", "-m", "density=0.35,0.65", "hydra.sweep.dir=multirun/shown")
    shown, code = on_a_terminal(words, project)
    assert code == 0
    for bar in ("factorising", "pruning", "first layer alone", "densities"):
        assert bar in shown
    assert "point 1 of 2:" in shown
    assert re.search(rf"point 2 of 2, {CLOCK} left: density=0.65", shown)
    assert shown.index("densities") < shown.rindex("lobs prune -m")
    quiet, code = elsewhere(words, project)
    assert code == 0
    assert "lobs prune -m" in quiet
    assert not re.search(rf"factorising|densities|point \d|{CLOCK}", quiet)


@pytest.mark.slow
def test_training_shows_the_time_for_all_iterations(project):
    words = lobs("retrain", "folders.output=shown", "retrain.iterations=400", "retrain.measure_every=400")
    shown, code = on_a_terminal(words, project)
    assert code == 0
    assert re.search(rf"training .*\d+% {CLOCK}", shown)
    assert shown.index("training") < shown.rindex("lobs retrain")
    quiet, code = elsewhere(words, project)
    assert code == 0
    assert "lobs retrain" in quiet
