"""Builds the sdist, the wheel from it, and tries the wheel out in an empty folder: `make package`.

The wheel is installed into a new virtual environment without its dependencies; a .pth file lends it those of the
environment that runs this. So it is not proved that the dependencies which pyproject.toml declares are enough or can be
installed: `--fresh` installs them from the registry and proves that (the job `package` of .github/workflows/ci.yml).
`--built FOLDER` takes the archives that lie there already, to try out what is going to be published.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
# What stages write belongs into neither archive.
WRITTEN = {"data", "runs", "resolved", "multirun", "mlruns", "reports"}
PRUNE = """
import lobs, torch
from pathlib import Path
from torch import nn
assert Path({environment!r}) in Path(lobs.__file__).parents, lobs.__file__
model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
result = lobs.prune(model, density=0.5, batches=[(torch.randn(30, 12), torch.zeros(30))])
assert abs(result.density - 0.5) < 0.02, result.density
"""
TYPED = """
from typing import Any
import lobs
model: Any = None
reveal_type(lobs.prune(model, density=0.5).density)
"""
# torch's own types are no matter here, and reading them takes a minute.
MYPY = "[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n"
WITHOUT_HYDRA = """
import sys
sys.modules["hydra"] = None
from lobs_paper.cli import main
sys.exit(main(["prune"]))
"""
ONE_LINE = "lobs: lobs prune needs {}, which is not installed here: run `pip install 'lobs[experiments]'`\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--built", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        built = (given.built or place / "dist").resolve()
        if given.built is None:
            run(sys.executable, "-m", "build", "--outdir", built, ROOT, cwd=ROOT)
        (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
        check_contents(sdist, wheel)
        python = install(wheel, place / "environment", given.fresh)
        (place / "empty").mkdir()
        try_out(python, place / "empty", given.fresh)
        check_types(python, place / "empty")
    print("the sdist and the wheel are as they should be")


def check_contents(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    conf = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    kinds = ("*.py", "*.j2", "*.html", "py.typed")
    code = {path.relative_to(ROOT / "src").as_posix() for kind in kinds for path in (ROOT / "src").rglob(kind)}
    lacking = (conf | {f"src/{name}" for name in code}) - packed
    assert not lacking, f"the sdist lacks {sorted(lacking)}"
    lacking = ({f"lobs_paper/{name}" for name in conf} | code) - installed
    assert not lacking, f"the wheel lacks {sorted(lacking)}"
    odd = {name for name in installed if name.split("/")[0] not in ("lobs", "lobs_paper") and ".dist-info/" not in name}
    odd |= {name for name in packed if WRITTEN & set(name.split("/")[:1])}
    odd |= {name for name in packed if name.startswith("pipelines/") and WRITTEN & set(name.split("/")[2:3])}
    assert not odd, f"the archives hold {sorted(odd)}"


def install(wheel: Path, environment: Path, fresh: bool) -> Path:
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, *([] if fresh else ["--no-deps"]), wheel, cwd=environment)
    if not fresh:
        # Only the folder is lent: .pth files in it (an editable lobs) do not count.
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "lent.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return python


def try_out(python: Path, empty: Path, fresh: bool) -> None:
    run(python, "-c", PRUNE.format(environment=str(python.parents[1])), cwd=empty)
    command = python.parent / "lobs"
    assert run(command, "--help", cwd=empty).stdout.startswith("usage: lobs <stage>")
    if fresh:
        done = run(command, "prune", cwd=empty, code=2)
    else:
        assert "density: 0.07" in run(command, "prune", "--cfg", cwd=empty).stdout
        done = run(python, "-c", WITHOUT_HYDRA, cwd=empty, code=2)
    assert done.stderr in {ONE_LINE.format(name) for name in ("hydra", "yaml", "omegaconf", "pydantic")}, done.stderr
    assert not list(empty.iterdir()), "something was written into the folder"


def check_types(python: Path, empty: Path) -> None:
    (empty / "typed.py").write_text(TYPED)
    (empty / "mypy.ini").write_text(MYPY)
    mypy = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", os.devnull]
    said = run(*mypy, "typed.py", cwd=empty).stdout
    assert re.search(r'Revealed type is "(builtins\.)?float"', said), said


def run(*words: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody would who has no checkout."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH", "LOBS_CONF")
    }
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    main()
