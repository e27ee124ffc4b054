"""Adding a method takes one file, one YAML and one row of the contract test, tried in a copy of the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Something that nobody has: the largest weights leave first.
SOLVER = '''"""Magnitude pruning the wrong way round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath
from lobs.solvers.ranking import rank_by_score


@dataclass(frozen=True)
class Largest(Solver):
    """Remove the largest |w| of the layer first.

    Args:
        pattern: N:M, kept of consecutive inputs.
    """

    line: ClassVar[str] = "largest absolute weights first"
    by_group: ClassVar[bool] = False
    pattern: str | None = None

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of |w|, backwards."""
        values = weight[:, : statistics.features].abs()
        rank, total = rank_by_score(-values, values == 0, self.pattern)
        return RankedPath(weight, statistics, rank, total)
'''
YAML = """name: largest
solver: largest
options: {}
allocation: uniform
rounds: null
retrain: {}
"""
ROW = '    ("largest", {}, False),\n'


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "src/lobs/solvers/largest.py").write_text(SOLVER)
    (tmp_path / "conf/method/largest.yaml").write_text(YAML)
    contract = Path("tests/lobs/solvers/test_contract.py")
    (tmp_path / contract).parent.mkdir(parents=True)
    text = (ROOT / contract).read_text()
    (tmp_path / contract).write_text(text.replace("SOLVERS = [\n", f"SOLVERS = [\n{ROW}", 1))
    return tmp_path


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_solver_is_one_file_one_yaml_and_one_row(copied):
    code = (
        "import torch, lobs; model = torch.nn.Linear(4, 3);"
        "print(lobs.methods()['largest'], lobs.__file__);"
        "result = lobs.prune(torch.nn.Sequential(model), batches=[torch.randn(9, 4)], method='largest', density=0.25);"
        "kept = model.weight.abs()[result.masks['0']];"
        "assert len(kept) == 3 and kept.max() <= model.weight.abs()[~result.masks['0']].min()"
    )
    printed = run(copied, "-c", code)
    assert printed.startswith("largest absolute weights first")
    assert str(copied) in printed
    shown = run(copied, "-m", "lobs_paper.cli", "prune", "method=largest", "method.options.pattern=1:2", "--cfg")
    assert "solver: largest" in shown
    passed = run(copied, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "largest or table", "tests")
    assert " passed" in passed
