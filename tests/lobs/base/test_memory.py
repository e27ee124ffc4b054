"""How much memory there is, and the ceiling that follows from it."""

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
