"""What docs/pipeline.md says of DVC, on a copy of this repository's dvc.yaml: plots, the queue, a remote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.cli import main

ROOT = Path(__file__).parents[2]
PLOTS = {
    name: plot
    for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    if isinstance(entry, dict)
    for name, plot in entry.items()
}
STAGE = "fetch@mnist"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """dvc.yaml with what it reads to plot and to queue, as a repository of its own."""
    folder = tmp_path / "checkout"
    for path in ("dvc.yaml", ".dvc/config", ".dvcignore", ".gitignore", "conf", "reports/overview.png"):
        source, target = ROOT / path, folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for path in {path for plot in PLOTS.values() for path in plot["y"]}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    for path in ("resolved/fetch/mnist.yaml", "resolved/code/fetch/mnist.yaml", "data/mnist/test.safetensors"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["dvc"])  # which DVC looks at, too
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *words], check=True)
    return folder


def test_the_committed_plots_are_drawn(checkout):
    assert main(["plots", "show", "--quiet", "--out", "drawn"]) == 0
    page = (checkout / "drawn/index.html").read_text(encoding="utf-8")
    assert all(plot["title"] in page for plot in PLOTS.values())
    assert [path.name for path in (checkout / "drawn/static").iterdir()] == ["workspace_reports_overview.png"]


def test_a_plots_specification_holds_its_data(checkout):
    words = ["plots", "show", "--show-vega", "pruned lenet300"]
    shown = subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True, text=True)
    specification = json.loads(shown.stdout)
    assert specification["$schema"].endswith("/vega-lite/v5.json")
    drawn = {row["filename"].split("/")[0] for row in specification["data"]["values"]}
    assert drawn == {path.split("/")[3] for path in PLOTS["pruned lenet300"]["y"]}


def test_an_experiment_is_queued_with_its_value_and_the_working_tree_stays(checkout):
    words = ["-S", "conf/method/lobs.yaml:options.damping=0.125", "resolve"]
    before = (checkout / "conf/method/lobs.yaml").read_bytes()
    assert main(["exp", "run", "--queue", "--name", "queued", *words]) == 0
    assert (checkout / "conf/method/lobs.yaml").read_bytes() == before
    assert main(["queue", "status"]) == 0
    shown = subprocess.run(
        ["git", "show", "refs/exps/celery/stash:conf/method/lobs.yaml"], check=True, capture_output=True, text=True
    )
    assert yaml.safe_load(shown.stdout)["options"]["damping"] == 0.125
    assert main(["queue", "remove", "queued"]) == 0


def test_what_was_pushed_to_a_folder_is_pulled_from_it(checkout, tmp_path):
    data = checkout / "data/mnist/test.safetensors"
    assert main(["remote", "add", "--quiet", "--local", "--default", "store", str(tmp_path / "store")]) == 0
    assert main(["commit", "--quiet", "--force", STAGE]) == 0
    assert main(["push", "--quiet", STAGE]) == 0
    shutil.rmtree(checkout / "data")
    shutil.rmtree(checkout / ".dvc/cache")
    assert main(["pull", "--quiet", STAGE]) == 0
    assert data.read_text() == "data/mnist/test.safetensors"
