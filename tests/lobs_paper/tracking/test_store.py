"""MLflow's store: runs are found by their key, built whole or not at all, and never there twice."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from helpers.mlflow import client_of, visible
from lobs_paper.tracking.runs import sync
from lobs_paper.tracking.store import DIGEST, Entry, opened


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


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_store_survives_that_its_birth_is_interrupted(runs: Path, tmp_path: Path, how: signal.Signals) -> None:
    store = tmp_path / "store"
    process = multiprocessing.get_context("spawn").Process(target=sync, args=(runs, store))
    process.start()
    while process.is_alive() and not [file for file in store.glob("mlflow.db*") if file.stat().st_size]:
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.join()
    # On a busy machine the signal may come late, when some of the runs are there.
    found = sync(runs, store)
    assert found["created"] + found["updated"] + found["unchanged"] == 4
    assert [file.name for file in store.glob("mlflow.db*")] == ["mlflow.db"]


@pytest.mark.parametrize("content", [b"no database", b""], ids=["damaged", "empty"])
def test_a_database_that_cannot_be_read_is_one_line(runs: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    if content:
        with pytest.raises(
            ValueError, match=r"mlflow.db cannot be read by this version of MLflow .*: delete it"
        ) as found:
            sync(runs, tmp_path)
        assert "\n" not in str(found.value)
    else:
        assert sync(runs, tmp_path)["created"] == 4


@pytest.mark.parametrize(
    "change", [{"requested": 3}, {"density": "x"}, {"requested": []}], ids=lambda change: str(change)
)
def test_results_of_other_types_are_named_and_nothing_is_written(runs: Path, tmp_path: Path, change: dict) -> None:
    path = runs / "lenet300/seed0/lobs/prune/metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (runs / "lenet300/seed0/lobs/retrain/metrics.json").unlink()
    with pytest.raises(ValueError, match=r"seed0/lobs: its files are not what the stages write"):
        sync(runs, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_metrics_are_finite_numbers_under_names_that_mlflow_takes() -> None:
    entry = Entry("a run", "key", "digest")
    for name, value in (("error[ä]", 2), ("ok-1_a.b c:d/e", 0.5), ("inf", float("inf")), ("text", "x"), ("none", None)):
        entry.add(name, value, 3)
    assert entry.metrics == [("error___", 2.0, 3), ("ok-1_a.b c:d/e", 0.5, 3)]


def test_a_run_is_built_once_and_anew_where_its_contents_change(store: Path) -> None:
    with opened(store) as writer:
        parent = writer.parent("net", {"network": "net"})
        assert writer.parent("net", {}) == parent
        assert writer.put(Entry("a run", "net/a", "1", params={"x": 3}), parent) == "created"
    with opened(store) as writer:
        assert writer.parent("net", {}) == parent
        assert writer.put(Entry("a run", "net/a", "1"), parent) == "unchanged"
        assert writer.put(Entry("a run", "net/a", "2", failed=True), parent) == "updated"
    found = visible(store)
    assert set(found) == {"net", "net/a"}
    assert (found["net"].data.tags["network"], found["net/a"].info.status) == ("net", "FAILED")
    assert found["net/a"].data.params == {}


def test_files_and_many_values_are_stored_whole(store: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    entry = Entry("a run", "net/a", "1", params={f"p{n}": n for n in range(101)}, files=[(tmp_path / "x.csv", "deep")])
    for step in range(1001):
        entry.add("loss", step, step)
    with opened(store) as writer:
        writer.put(entry, writer.parent("net", {}))
    run = visible(store)["net/a"]
    assert len(run.data.params) == 101
    assert run.data.metrics["loss"] == 1000
    assert (store / "artifacts" / run.info.run_id / "artifacts/deep/x.csv").read_text() == "1,2"


def test_attached_files_take_the_place_of_earlier_ones(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with opened(store) as writer:
        run = writer.parent("net", {})
        for digest, name in (("1", "old"), ("1", "ignored"), ("2", "new")):
            for file in folder.iterdir():
                file.unlink()
            (folder / name).write_text(name)
            writer.attach(run, folder, "report", digest)
    assert [file.name for file in (store / "artifacts" / run / "artifacts/report").iterdir()] == ["new"]


def test_a_table_compares_children_and_is_replaced_not_added_to(store: Path) -> None:
    rows = [Entry("a", "net/a", "1", tags={"seed": 0}), Entry("b", "net/b", "1", tags={"seed": 1, "data": "x"})]
    for step, error in enumerate((9.0, 3.5)):
        rows[1].add("error", error, step)
    expected = {"run": ["a", "b"], "seed": ["0", "1"], "data": ["", "x"], "error": [None, 3.5]}
    with opened(store) as writer:
        run = writer.parent("net", {})
        path = store / "artifacts" / run / "artifacts/comparison.json"
        writer.compare(run, rows, ["error", "nowhere"])
        first = path.stat().st_mtime_ns
        writer.compare(run, rows, ["error", "nowhere"])
        assert path.stat().st_mtime_ns == first, "nothing has changed"
        table = pd.read_json(path, orient="split", dtype={"seed": str})
        assert table.astype(object).where(table.notna(), None).to_dict("list") == expected
        writer.compare(run, rows[:1], ["error"])
    assert pd.read_json(path, orient="split")["run"].tolist() == ["a"]
