"""The paper's half on ImageNet, pipelines/imagenet_paper, from a made folder of tiny pictures to the report's pages."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from helpers import small_networks
from helpers.images import encoded, write_folder
from lobs_paper.cli import main

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipelines/imagenet_paper"
NETWORKS = ("alexnet", "vgg16", "resnet50")
MEASURED = 30  # of the 1,000 classes: every measurement takes a pass over these pictures
SMALL = [
    *("data.resize=36", "data.size=32", "collect.images=12", "collect.batch_size=6", "threads=1", "device=cpu"),
    *("retrain.iterations=4", "retrain.batch_size=6", "retrain.measure_every=2", "methods.dns.surgery.stop=3"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which every command of dvc.yaml has run, in one process: each would import for seconds."""
    folder = tmp_path_factory.mktemp("imagenet")
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "pipelines/imagenet_paper").mkdir(parents=True)
    for name in ("dvc.yaml", "matrix.yaml"):
        shutil.copy(PIPELINE / name, folder / "pipelines/imagenet_paper")
    pictures = {f"train/n{number:08}/a.JPEG": encoded(number, kind="JPEG") for number in range(1000)}
    pictures |= {f"val/n{number:08}/b.JPEG": encoded(number, kind="JPEG") for number in range(MEASURED)}
    write_folder(folder / "pictures", pictures)
    for name in NETWORKS:
        torch.manual_seed(0)
        torch.save(getattr(small_networks, name)().state_dict(), folder / f"{name}.pt")
        settings = {"_target_": f"small_networks.{name}", "weights": str(folder / f"{name}.pt")}
        (folder / f"conf/model/{name}.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOBS_CONF", str(folder / "conf"))
        patch.setenv("LOBS_DATA", str(folder / "pictures"))
        patch.setenv("LOBS_OVERRIDES", " ".join(SMALL))
        patch.setitem(sys.modules, "small_networks", small_networks)
        patch.chdir(folder / "pipelines/imagenet_paper")
        for command, deps, outs in commands():
            missing = [dep for dep in deps if not dep.startswith("../../") and not Path(os.path.normpath(dep)).exists()]
            assert not missing, command
            assert main(command.split()[1:]) == 0, command
            assert all(Path(out).exists() for out in outs), command
        patch.chdir(folder)
        assert main(["report", "track.models=false"]) == 0
        yield folder


def commands():
    """The commands of dvc.yaml in its order, for all that the matrix lists; with what they read and write."""
    lists = yaml.safe_load((PIPELINE / "matrix.yaml").read_text())
    for stage in yaml.safe_load((PIPELINE / "dvc.yaml").read_text())["stages"].values():
        matrix = {key: lists[value[2:-1]] for key, value in stage.get("matrix", {}).items()}
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"] + stage.get("metrics", [])]
        for values in itertools.product(*matrix.values()):
            chosen = dict(zip(matrix, values, strict=True))

            def filled(text, chosen=chosen):
                return re.sub(r"\$\{item\.(\w+)\}", lambda found: str(chosen[found[1]]), text)

            command = os.path.expandvars(stage["cmd"]) if not matrix else filled(stage["cmd"])
            yield command, [filled(dep) for dep in stage["deps"]], [filled(out) for out in outs]


@pytest.mark.slow
def test_the_rows_of_table_1_and_figure_6_come_out(project):
    table = pd.read_csv(project / "reports/table1.csv")
    runs = yaml.safe_load((PIPELINE / "matrix.yaml").read_text())["runs"]
    found = {f"{row.experiment}/seed0/{row.method}": row for row in table.itertuples() if row.seeds}
    assert sorted(found) == sorted(runs)
    papers = [row for row in found.values() if pd.notna(row.original_error_paper_percent)]
    assert {(row.experiment, row.method) for row in papers} == {
        *(("alexnet", method) for method in ("lobs", "dns", "lwc")),
        *(("vgg16", method) for method in ("lobs_iterative", "lwc")),
    }
    for row in papers:
        assert abs(row.density_percent - row.density_paper_percent) < 1, row
        assert "times the paper's iterations" in row.verdict
    for name in NETWORKS:
        page = (project / f"reports/{name}.md").read_text()
        assert "ImageNet" in page
        assert "op-5" in page
    figure = pd.read_csv(project / "reports/figure6a.csv")
    assert set(figure["experiment"]) == {"resnet50"}
    assert "test_top5_error_percent" in figure
    assert "resnet50" in (project / "reports/index.html").read_text()
