"""A stage after prune goes on only with a network of the budget that it is asked for."""

from __future__ import annotations

import json

import pytest

from lobs_paper.stages.folders import Folders
from lobs_paper.stages.same_budget import require_same_budget


def config(tmp_path, rounds=None, **budget):
    budgets = {"density": None, "tolerance": None, "flops": None, "size": None, **budget}
    paths = {"output": None, "runs": str(tmp_path)}
    return {"name": "x", "seed": 0, "method": {"name": "lobs", "rounds": rounds}, "folders": paths, **budgets}


def pruned(tmp_path, **requested):
    path = tmp_path / "x/seed0/lobs/prune/metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"requested": requested, "kept": 3}))


@pytest.mark.parametrize(
    ("asked", "requested"),
    [
        ({"density": 0.07}, {"density": 0.07}),
        ({"flops": 0.2}, {"flops": 0.2}),
        ({"tolerance": 0.5}, {"tolerance": 0.5}),
        ({"density": 0.02, "rounds": [0.1, 0.05]}, {"density": 0.1}),
    ],
)
def test_the_metrics_are_given_where_the_budgets_agree(tmp_path, asked, requested):
    given = config(tmp_path, **asked)
    pruned(tmp_path, **requested)
    assert require_same_budget(given, Folders(given)) == {"requested": requested, "kept": 3}


@pytest.mark.parametrize(
    ("asked", "requested", "message"),
    [
        (
            {"density": 0.1},
            {"density": 0.2},
            r"density=0.1 was asked for, but .*prune was pruned with density=0.2: run",
        ),
        ({"flops": 0.1}, {"density": 0.1}, r"flops=0.1 was asked for, .* method=lobs flops=0.1` first"),
    ],
)
def test_another_budget_is_refused_with_the_command_for_this_one(tmp_path, asked, requested, message):
    given = config(tmp_path, **asked)
    pruned(tmp_path, **requested)
    with pytest.raises(ValueError, match=message):
        require_same_budget(given, Folders(given))


def test_a_network_that_was_never_pruned_is_missed(tmp_path):
    given = config(tmp_path, density=0.1)
    with pytest.raises(ValueError, match="does not exist yet: run `lobs prune experiment=x seed=0 method=lobs`"):
        require_same_budget(given, Folders(given))
