"""MLflow's store: runs are found by their key, built whole or not at all, and never there twice."""

import multiprocessing
from pathlib import Path

import pytest

from helpers.mlflow import client_of, visible
from lobs_paper.tracking.runs import sync
from lobs_paper.tracking.store import DIGEST


def test_a_half_built_run_is_built_anew(runs: Path, store: Path) -> None:
    sync(runs, store)
    run = visible(store)["lenet300/seed0/lobs"]
    client_of(store).delete_tag(run.info.run_id, DIGEST)
    assert sync(runs, store) == {"created": 0, "updated": 1, "unchanged": 3}
    assert visible(store)["lenet300/seed0/lobs"].info.run_id != run.info.run_id


def test_children_follow_when_someone_deleted_the_parent_or_the_experiment(runs: Path, store: Path) -> None:
    sync(runs, store)
    client = client_of(store)
    client.delete_run(visible(store)["lenet300"].info.run_id)
    assert sync(runs, store) == {"created": 0, "updated": 4, "unchanged": 0}
    client.delete_experiment(client.get_experiment_by_name("paper").experiment_id)
    sync(runs, store)
    found = visible(store)
    assert len(found) == 5
    parent = found["lenet300"].info.run_id
    assert {run.data.tags.get("mlflow.parentRunId") for run in found.values()} == {None, parent}


@pytest.mark.slow
def test_two_processes_at_once_create_one_store_without_duplicates(runs: Path, tmp_path: Path) -> None:
    store = tmp_path / "new/store"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=sync, args=(runs, store)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(visible(store)) == 5
