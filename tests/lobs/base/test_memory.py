"""How much memory there is, and the ceiling that follows from it."""

import resource

import pytest
import torch

from lobs.base import memory
from lobs.base.memory import MARGIN, available_bytes, ceiling


def test_the_ceiling_is_what_is_available_less_a_margin(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1001)
    assert ceiling(None) == int((1 - MARGIN) * 1001)
    assert ceiling(7.9) == 7


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_ceiling_that_is_not_positive_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"memory is a ceiling in bytes, above 0, .* got {wrong}"):
        ceiling(wrong)


def test_what_is_available_is_more_than_nothing_and_less_than_the_machine_has():
    pages = memory.os.sysconf("SC_PHYS_PAGES") * memory.os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes() <= pages


def test_without_the_kernels_account_the_free_pages_count(monkeypatch):
    monkeypatch.setattr(memory.Path, "exists", lambda path: False)
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_bytes() == 5 * 4096


def test_a_gpus_own_memory_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12, 80))
    assert available_bytes("cuda") == 12


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(str(text))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 1 MB free and no limits; tests add files of control groups."""
    write(tmp_path / "proc", {"meminfo": "MemFree: 9 kB\nMemAvailable: 1000 kB\n"})
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


@pytest.mark.parametrize("inside", ["pod/box", ""])
def test_a_container_counts(machine, inside):
    """Also one that sees its own group as the root, and one whose limit is that of a group around it."""
    write(machine / "proc/self", {"cgroup": f"0::/{inside}\n"})
    write(machine / "cgroup" / inside, {"memory.max": "max", "memory.current": 1})
    assert available_bytes() == 1000 * 1024
    write(machine / "cgroup", {"memory.max": 9000, "memory.current": 5000, "memory.stat": "anon 7\ninactive_file 500"})
    assert available_bytes() == 4500
    assert ceiling(None) == 3375
    write(machine / "cgroup" / inside, {"memory.max": 100, "memory.current": 160, "memory.stat": ""})
    assert available_bytes() == 0


def test_a_container_of_the_first_version_counts(machine):
    write(machine / "proc/self", {"cgroup": "9:name=systemd:/\n4:memory:/elsewhere/box\n1:cpu:/\n0::/\n"})
    write(machine / "cgroup/cpu", {"memory.limit_in_bytes": 1, "memory.usage_in_bytes": 1})
    limits = {"memory.limit_in_bytes": 9000, "memory.usage_in_bytes": 5000, "memory.stat": "total_inactive_file 100"}
    write(machine / "cgroup/memory", limits)  # the group's path is the one outside of the container
    assert available_bytes() == 4100


@pytest.mark.parametrize(("limit", "field"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_ulimit_counts(limit, field):
    kind = getattr(resource, limit)
    soft, hard = resource.getrlimit(kind)
    used = memory._kibibytes(memory.PROCESS / "self/status", field)
    try:
        resource.setrlimit(kind, (used + 2**28, hard))
        assert 0 < available_bytes() <= 2**28 + 2**24
    finally:
        resource.setrlimit(kind, (soft, hard))
