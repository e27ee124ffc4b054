"""What is one line: mistakes raised on purpose, and what disk and memory refuse; nothing else."""

from __future__ import annotations

import errno
import sqlite3

import pytest
import torch
from safetensors import SafetensorError

from lobs_paper import cli
from lobs_paper.config.compose import load
from lobs_paper.stages.faults import is_user_error, machine_fault


def caught(run):
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError


def test_a_mistake_is_what_our_code_raises_on_purpose(tmp_path):
    from lobs.base.arguments import check_number
    from lobs_paper.files import require
    from lobs_paper.stages.printing import clock

    assert is_user_error(caught(lambda: require(tmp_path / "none", "lobs train")))
    assert is_user_error(caught(lambda: load(["density=7"])))
    assert is_user_error(caught(lambda: check_number("density", "x", "a share"))), "TypeErrors, too"
    assert not is_user_error(caught(lambda: clock("x"))), "a slip ends in our code, but nothing was raised there"
    assert not is_user_error(caught(lambda: int("x")))
    assert not is_user_error(caught(lambda: torch.zeros(2).view(3)))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: No space left on device: free some, or"),
        (
            OSError(errno.EROFS, "x", "runs/x"),
            "runs/x: Read-only file system: make it writable, or name another folder",
        ),
        (PermissionError(errno.EACCES, "x", "runs"), "runs: Permission denied: make it writable"),
        (NotADirectoryError(errno.ENOTDIR, "x", "runs/x"), "runs/x: Not a directory"),
        (
            SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space" })'),
            "No space left on device",
        ),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file system"),
        (sqlite3.OperationalError("database or disk is full"), "No space left on device"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "Read-only file system"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (BrokenPipeError(errno.EPIPE, "x"), None),
        (FileNotFoundError(errno.ENOENT, "x", "y"), None),
        (RuntimeError("code: 28"), None),
        (ValueError("No space left on device"), None),
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'errno', '')}",
)
def test_disk_and_memory_are_one_line_with_a_remedy(error, said):
    found = machine_fault(error)
    assert found is None if said is None else said in found


def test_a_full_disk_ends_a_command_with_one_line_and_code_1(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr(cli, "run_stage", full)
    assert cli.main(["fetch"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lobs: runs/x: No space left on device: free some")
    assert said.count("\n") == 1
    monkeypatch.setenv("LOBS_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space"):
        cli.main(["fetch"])
