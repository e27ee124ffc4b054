"""Wall time by layer and memory of a stage."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from lobs_paper.stages import stopwatch
from lobs_paper.stages.stopwatch import Stopwatch, peak_memory_mib


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    time = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: time[0])
    return time


def test_what_is_spent_on_a_name_adds_up_over_all_passes(now):
    watch = Stopwatch()
    for pass_ in range(2):
        for name in watch.each(["a", "b"]):
            now[0] += {"a": 1.0, "b": 0.25}[name] * (pass_ + 1)
    now[0] += 10
    result = watch.result({"threads": 3}, torch.device("cpu"))
    assert result["layers"] == {"a": 3.0, "b": 0.75}
    assert result["total"] == 13.75
    assert (result["threads"], result["device"]) == (3, "cpu")
    assert result["peak_memory_mib"] > 0


def test_every_run_says_what_its_last_digits_depend_on():
    result = Stopwatch().result({"threads": 3}, torch.device("cpu"))
    assert result["processor"]
    assert result["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in result["versions"]["torch"]
    assert list(result["versions"]) == ["lobs", "python", "torch", "numpy", "numba"]


def test_the_peak_is_this_processs_own():
    before = peak_memory_mib()
    block = bytearray(64 * 2**20)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    assert peak_memory_mib() >= before > 10
    assert peak_memory_mib() < 2**20


@pytest.mark.parametrize(("platform", "bytes_each"), [("linux", 1024), ("darwin", 1)])
def test_without_the_kernels_account_the_systems_counts_in_its_own_unit(monkeypatch, platform, bytes_each):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(sys, "platform", platform)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory_mib() == pytest.approx(peak * bytes_each / 2**20, rel=0.1, abs=0.1)
