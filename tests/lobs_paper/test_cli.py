"""The command line from outside: exit codes, one-line errors, nothing written, nothing heavy imported too early."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from lobs_paper.cli import STAGES, main
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import STAGE_KEYS
from lobs_paper.files import write_text

HEAVY = {"torch", "numpy", "pytorch_lightning", "mlflow", "matplotlib"}
PROBE = """
import sys
from lobs_paper.cli import main
code = main(sys.argv[1:])
print(",".join(sorted({name.split(".")[0] for name in sys.modules})))
sys.exit(code)
"""


def probe(folder, *words):
    """Run the command line in a new process; its result and the top-level modules it imported."""
    done = subprocess.run([sys.executable, "-c", PROBE, *words], cwd=folder, capture_output=True, text=True)
    return done, set(done.stdout.strip().splitlines()[-1].split(","))


@pytest.mark.parametrize("words", [["prune", "density=7"], ["train", "densty=1"], ["nonsense"], ["prune", "--fast"]])
def test_a_mistake_ends_at_once_with_one_line_and_nothing_written(tmp_path, words):
    start = time.perf_counter()
    done, modules = probe(tmp_path, *words)
    seconds = time.perf_counter() - start
    assert done.returncode == 2
    assert done.stderr.startswith("lobs: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not HEAVY & modules
    assert not list(tmp_path.iterdir())
    assert seconds < 5  # under a second on an idle machine; the import check above is what keeps it so


def test_help_lists_every_stage(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {stage}" in text for stage in STAGES)
    assert main(["prune", "--help"]) == 0
    assert re.search(r"\n  method: .*\blobs\b", capsys.readouterr().out)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["prune", "--cfg"], ["nonsense"], ["prune", "density=7"]])
def test_a_reader_that_goes_away_ends_it_quietly(tmp_path, monkeypatch, words, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    errors = writer if words[-1] in ("nonsense", "density=7") else subprocess.PIPE
    command = [sys.executable, "-m", "lobs_paper.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=errors)
    os.close(writer)
    assert (done.returncode, done.stderr or b"") == (141, b"")


def test_another_pipe_that_breaks_is_no_matter_of_the_output(tmp_path, monkeypatch):
    from lobs_paper import cli

    def broken(stage, config):
        raise BrokenPipeError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_stage", broken)
    with pytest.raises(BrokenPipeError):
        main(["fetch"])


def test_the_first_line_of_the_help_can_be_had(tmp_path):
    script = 'set -o pipefail; "$0" -m lobs_paper.cli --help | head -1'
    done = subprocess.run(["bash", "-c", script, sys.executable], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 141)  # whether head is still there is a matter of luck
    assert done.stdout == "usage: lobs <stage> [key=value ...] [-m] [--cfg] [--resolved FILE]\n"
    assert not done.stderr


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from lobs_paper.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("module", ["hydra", "omegaconf", "pydantic", "yaml"])
@pytest.mark.parametrize("words", [["prune"], ["prune", "-m", "density=0.1,0.2"]])
def test_without_the_extra_a_stage_says_what_to_install(tmp_path, module, words):
    done = subprocess.run([sys.executable, "-c", WITHOUT, module, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    needed = r"lobs: lobs prune needs \w+, which is not installed here: run `pip install 'lobs\[experiments\]'`\n"
    assert re.fullmatch(needed, done.stderr)


@pytest.mark.parametrize("words", [["--help"], ["prune", "--help"]])
def test_the_help_needs_no_extra(tmp_path, words):
    for module in ("hydra", "omegaconf", "pydantic", "yaml"):
        done = subprocess.run([sys.executable, "-c", WITHOUT, module, *words], cwd=tmp_path, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_module_that_a_stage_misses_is_named_and_any_other_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    from lobs_paper import cli

    def missing(stage, config):
        raise ModuleNotFoundError("No module named it", name=name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_stage", missing)
    for name in ("pytorch_lightning", "mlflow.tracking"):
        assert main(["fetch"]) == 2
        assert f"lobs fetch needs {name.partition('.')[0]}, which" in capsys.readouterr().err
    name = "module_of_the_user"
    with pytest.raises(ModuleNotFoundError):
        main(["fetch"])


def test_every_configured_stage_can_be_called():
    assert set(STAGE_KEYS) | {"resolve", "compare", "estimate"} == set(STAGES)


def test_cfg_prints_what_the_stage_reads(capsys):
    import yaml

    assert main(["fetch", "--cfg"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {
        "data": {"name": "mnist", "_target_": None, "root": None},
        "folders": {"data": "data"},
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resolved"], "--resolved needs the name of a file"),
        (["--resolved", "none.yaml"], "none.yaml does not exist yet: run `lobs resolve` first"),
        (["--resolved", "x.yaml", "seed=1"], "takes no overrides"),
        (["--resolved", "list.yaml"], "is no configuration"),
        (["--resolved", "bad.yaml"], "bad.yaml: unknown key colect={}: did you mean collect?"),
        (["--resolved", "short.yaml"], "short.yaml: key name is missing: run `lobs resolve` again"),
        (["--resolved", "part.yaml"], "part.yaml: key 'method' is missing: run `lobs resolve` again"),
        (["--resolved", "tab.yaml"], "tab.yaml is no YAML that can be read"),
        (["--resolved", "twice.yaml"], "key 'seed' is there twice"),
        (
            ["--resolved", "foreign.yaml"],
            "foreign.yaml: model._target_=os.system is not accepted: code is imported only",
        ),
        (["--resolved", "."], ". cannot be read"),
    ],
)
def test_a_resolved_file_is_checked_like_any_configuration(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    write_text("list.yaml", "- 1\n")
    write_text("bad.yaml", "colect: {}\n")
    write_text("short.yaml", "seed: 1\n")
    write_text("part.yaml", "density: 0.1\ntolerance: null\n")
    write_text("tab.yaml", "seed:\t1\n\t- 2\n")
    write_text("twice.yaml", "seed: 1\nseed: 2\n")
    resolved = _resolved("collect")
    write_text("foreign.yaml", resolved.replace("lobs_paper.networks.lenet300.LeNet300", "os.system"))
    assert main(["collect", *words]) == 2
    assert expected in capsys.readouterr().err


def test_resolve_writes_nothing_when_one_composition_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["resolve", "train.epochs=0"]) == 2
    assert "train.epochs=0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_error_from_inside_a_foreign_package_keeps_its_traceback(tmp_path, monkeypatch):
    from lobs_paper import cli

    def foreign(stage, config):
        import json

        json.loads("{")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_stage", foreign)
    with pytest.raises(ValueError, match="Expecting property name"):
        main(["fetch"])


def test_a_stage_imports_only_what_it_needs(project):
    write_text("prune.yaml", _resolved("prune"))
    write_text("collect.yaml", _resolved("collect"))
    for stage in ("prune", "collect"):
        done, modules = probe(project, stage, "--resolved", f"{stage}.yaml")
        assert done.returncode == 0, done.stderr
        assert "torch" in modules
        assert not {"pytorch_lightning", "lightning", "mlflow", "hydra", "matplotlib", "dvc"} & modules


def _resolved(stage):
    import yaml

    from helpers.stages import SMALL
    from lobs_paper.config.stage_parts import stage_config

    return yaml.safe_dump(stage_config(load(SMALL), stage))


def test_threads_that_wait_do_not_spin_unless_asked_to(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["--help"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--help"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
