"""Threads, seed, device and memory of a stage."""

from __future__ import annotations

import pytest
import torch

from lobs_paper.stages.environment import ceiling_bytes, prepare


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(device="cpu", threads=1, seed=0):
    return {"device": device, "threads": threads, "seed": seed}


def test_threads_and_seed_are_those_of_the_configuration():
    prepare(config(threads=2, seed=5))
    assert torch.get_num_threads() == 2
    first = torch.rand(3)
    prepare(config(seed=5))
    assert torch.equal(torch.rand(3), first)
    prepare(config(seed=6))
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [("cpu", True, "cpu"), ("auto", True, "cuda"), ("auto", False, "cpu"), ("cuda", True, "cuda")],
)
def test_a_gpu_is_taken_where_there_is_one_and_none_is_declined(monkeypatch, asked, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert prepare(config(asked)) == torch.device(expected)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not accepted here: this machine has no CUDA device"):
        prepare(config("cuda"))


def test_memory_is_given_in_gib():
    assert ceiling_bytes({"memory": None}) is None
    assert ceiling_bytes({"memory": 0.5}) == 2**29
