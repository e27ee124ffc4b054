"""README.md, CONTRIBUTING.md, docs/*.md: Python blocks run, our programs accept the command lines, links resolve."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import lobs
from lobs_paper.cli import STAGES, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Languages of blocks that somebody could try out; pictures stand in blocks without a language, formulas in "math".
LANGUAGES = {"python", "sh", "yaml"}
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of a document's blocks."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", TEXTS[path], flags=re.DOTALL | re.MULTILINE)


def lines(language: str) -> list[Any]:
    """The command lines of all documents, continued lines joined, each as a test's parameter."""
    found = []
    for path in DOCUMENTS:
        text = "".join(body + "\n" for kind, body in blocks(path) if kind == language)
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(pytest.param(words, id=f"{path.name}: {line.split('#')[0].strip()}"))
    return found


def targets() -> set[str]:
    """The names of all stages of dvc.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    matrix = yaml.safe_load((ROOT / "conf/matrix.yaml").read_text())
    names = set()
    for stage, entry in stages.items():
        if "matrix" not in entry:
            names.add(stage)
        elif "run" in entry["matrix"]:
            names |= {f"{stage}@{run}" for run in matrix["runs"]}
        elif "data" in entry["matrix"]:
            names |= {f"{stage}@{data}" for data in matrix["datasets"]}
        else:
            names |= {f"{stage}@{name}-{seed}" for name in matrix["experiments"] for seed in matrix["seeds"]}
    return names


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_block_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    batches = [(torch.randn(30, 12), torch.zeros(30)) for _ in range(3)]
    names = {"model": model, "batches": batches}  # as a reader would: one block after the other
    for language, block in blocks(path):
        assert language in LANGUAGES | {"", "math"}, f"{path.name}: nobody runs blocks of {language}"
        if language == "python":
            exec(block, names)
            if path.name == "README.md":
                result = names["result"]
                assert result.density <= 0.07
                assert set(result.masks) == {"0", "2"}
                assert not torch.equal(result.model[0].weight, model[0].weight)
        if language == "yaml":
            assert yaml.safe_load(block) is not None


@pytest.mark.parametrize("words", lines("sh"))
def test_every_command_line_is_one_that_our_programs_accept(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # conf/ is then the checkout's: nothing may depend on where the reader stands
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *rest = words
    check = CHECKS.get(program)
    assert check, f"nobody checks the program {program}"
    check(rest, tmp_path)


def check_lobs(words: list[str], folder: Path) -> None:
    """Composes the configuration of the stage; of a sweep, that of every point."""
    if words == ["--help"]:
        return
    stage, *overrides = words
    assert stage in STAGES
    if stage == "compare":
        assert all(not word.startswith("-") or word in ("--output", "--help") for word in overrides)
    elif {"-m", "--multirun"} & set(overrides):
        from lobs_paper.config.compose import load, points

        found = points([word for word in overrides if word not in ("-m", "--multirun")])
        assert len(found) > 1
        for point in found:
            load(point)
    elif stage != "resolve":
        assert main([stage, *overrides, "--cfg"]) == 0
    assert not list(folder.iterdir()), "nothing ran"


def check_make(words: list[str], folder: Path) -> None:
    for word in words:
        name, given, _ = word.partition("=")
        if given:
            assert re.search(rf"\b{name}\b", MAKEFILE), f"the Makefile knows no {name}"
        else:
            rules = re.findall(r"^([a-z][\w -]*):", MAKEFILE, flags=re.MULTILINE)
            assert name in " ".join(rules).split(), f"no target {name}"


def check_dvc(words: list[str], folder: Path) -> None:
    from dvc.cli import parse_args

    found = parse_args(words)
    known = targets()
    if words[0] == "plots":
        drawn = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
        known = {name for entry in drawn for name in ([entry] if isinstance(entry, str) else entry)}
    for target in [*(getattr(found, "targets", None) or [])]:
        assert target in known, f"dvc.yaml has no {'plot' if words[0] == 'plots' else 'stage'} {target}"
    for change in getattr(found, "set_param", None) or []:
        file, _, assignment = change.partition(":")
        key = assignment.partition("=")[0].removeprefix("+")
        value = yaml.safe_load((ROOT / file).read_text())
        for part in key.split("."):
            value = value[part]


def check_pip(words: list[str], folder: Path) -> None:
    assert words[0] == "install"
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = re.findall(r"^(\w+) = \[", section, flags=re.MULTILINE)
    extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert set(",".join(extras).split(",")) - {""} <= set(known)


def check_python(words: list[str], folder: Path) -> None:
    assert (ROOT / words[0]).is_file()


def check_source(words: list[str], folder: Path) -> None:
    assert words == [".venv/bin/activate"]


CHECKS = {
    "lobs": check_lobs,
    "make": check_make,
    "dvc": check_dvc,
    "pip": check_pip,
    "python": check_python,
    "source": check_source,
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_resolves(path):
    text = re.sub(r"^```.*?^```", "", TEXTS[path], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (path.parent / link).exists(), link


def test_what_a_document_may_not_say_is_noticed(tmp_path):
    for check, words in [
        (check_lobs, ["prune", "methd=lobs"]),
        (check_make, ["rerpo"]),
        (check_dvc, ["repro", "evaluate@lenet300/seed7/lobs"]),
        (check_dvc, ["exp", "run", "-S", "conf/method/lobs.yaml:options.dampling=1"]),
        (check_pip, ["install", ".[experimnts]"]),
        (check_python, ["docs/missing.py"]),
    ]:
        with pytest.raises((AssertionError, KeyError)):
            check(words, tmp_path)


def test_the_version_is_the_same_wherever_it_is_named():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lobs.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+) ?", changes, flags=re.MULTILINE)[0] == lobs.__version__


def test_the_picture_of_the_packages_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import diagram
    finally:
        sys.path.pop(0)
    assert "".join(re.findall(r"<!-- (.+?) -->", diagram.draw().decode())) == "".join(
        re.findall(r"<!-- (.+?) -->", diagram.PICTURE.read_text(encoding="utf-8"))
    )
