"""A stage is found by its name, in an environment that suits it."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from lobs_paper.stages.run import ENVIRONMENT, run_stage


@pytest.fixture
def made_up(monkeypatch):
    """A stage that notes the environment it is run in."""
    for name in (*ENVIRONMENT, "TQDM_DISABLE"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    seen = {}

    def run(config):
        seen.update({name: os.environ.get(name) for name in (*ENVIRONMENT, "TQDM_DISABLE")})
        return {"given": config}

    monkeypatch.setitem(sys.modules, "lobs_paper.stages.made_up", SimpleNamespace(run=run))
    return seen


def test_a_stage_is_the_module_of_its_name(made_up):
    assert run_stage("made_up", {"a": 1}) == {"given": {"a": 1}}
    assert {name: made_up[name] for name in ENVIRONMENT} == ENVIRONMENT
    with pytest.raises(ModuleNotFoundError, match="no_such_stage"):
        run_stage("no_such_stage", {})


def test_what_the_user_has_set_stays(made_up, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_stage("made_up", {})
    assert made_up["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("terminal", "expected"), [(True, None), (False, "1")])
def test_foreign_bars_are_for_terminals(made_up, monkeypatch, terminal, expected):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal, write=sys.stdout.write, flush=id))
    run_stage("made_up", {})
    assert made_up["TQDM_DISABLE"] == expected
