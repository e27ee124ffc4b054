"""The command `lobs <stage> [key=value ...]`.

Everything is checked before anything heavy is imported: a mistake ends within a second, on one line, with exit code 2.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from io import UnsupportedOperation
from pathlib import Path
from typing import Any

from lobs_paper.stages.faults import is_user_error, machine_fault
from lobs_paper.stages.run import run_stage

STAGES: dict[str, str] = {
    "resolve": "compose conf/ into one small file per stage instance (the others depend on these)",
    "fetch": "download a data set, verify it, store it",
    "train": "train the dense network",
    "collect": "stream the calibration images into per-layer statistics",
    "factorise": "what takes prune long, of a part of the layers: a large network's on many machines",
    "prune": "prune the network by a method",
    "retrain": "retrain with fixed masks, in rounds where the method has them",
    "evaluate": "errors, densities, and Theorem 3.2's bound beside the measured output error",
    "report": "write tables, figures and the page",
    "estimate": "time and disk that a matrix.yaml's runs will take here (after resolve and fetch)",
    "track": "rebuild MLflow's store from the metrics files",
    "compare": "a table of the results in any folders: runs, sweeps and their points",
}
# What the library does without and the stages import: the extra `experiments` and what comes along with it.
EXTRA = {
    *(
        "hydra",
        "hydra_plugins",
        "omegaconf",
        "pydantic",
        "yaml",
        "pytorch_lightning",
        "lightning_fabric",
        "torchvision",
        "filelock",
    ),
    *("mlflow", "dvc", "matplotlib", "bokeh", "PIL", "rich", "backpack", "jinja2"),
}
# Where it is set (`make repro-imagenet LAUNCHER=...`), a resolved stage is a job of that launcher (conf/launcher).
LAUNCHER = "LOBS_LAUNCHER"
USAGE_ERROR = 2
FAILURE = 1
# As of a program that the signal SIGPIPE ended.
OUTPUT_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 where points of a sweep failed or the machine has no room (disk, memory), 2 for a mistake of
        the user, 130 when interrupted, 141 when nobody reads the output any more (`lobs --help | head -1`).

    Raises:
        BrokenPipeError: of a pipe that is not the output's.
    """
    # OpenMP reads this when torch is loaded: threads that wait by spinning starve each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # a reader that is gone is noticed here, not when Python ends
    except BrokenPipeError:
        if not _output_closed():
            raise
        return OUTPUT_CLOSED
    return code


def _output_closed() -> bool:
    """Whether nobody reads the output any more; what is left of it then goes nowhere."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        try:
            poll.register(stream.fileno(), select.POLLOUT)
        except UnsupportedOperation:  # a stream without a file has no reader either
            continue
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            closed = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return closed


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    stage, *rest = words
    if stage not in STAGES:
        return _complain(f"unknown stage {stage!r}: accepted are {', '.join(STAGES)}")
    try:
        if {"-h", "--help"} & set(rest):
            print(_stage_help(stage))
            return 0
        return _dispatch(stage, rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if os.environ.get("LOBS_TRACEBACK") or missing not in EXTRA:
            raise
        return _complain(
            f"lobs {stage} needs {missing}, which is not installed here: run `pip install 'lobs[experiments]'`"
        )
    except KeyboardInterrupt:
        return _complain("interrupted", code=130)
    except Exception as error:
        fault = machine_fault(error)
        if os.environ.get("LOBS_TRACEBACK") or not (fault or is_user_error(error)):
            raise
        return _complain(fault, code=FAILURE) if fault else _complain(str(error))


def _dispatch(stage: str, words: list[str]) -> int:
    if stage == "compare":
        return _compare(words)
    if stage == "estimate":
        return _estimate(words)
    multirun = _take_flag(words, "-m", "--multirun")
    show = _take_flag(words, "-c", "--cfg")
    resolved = _take_option(words, "--resolved")

    from lobs_paper.config.errors import ConfigError
    from lobs_paper.config.stage_parts import stage_config

    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}: accepted are -m, --resolved FILE, --cfg, --help and key=value")
    if resolved is not None:
        if words or multirun:
            raise ConfigError(f"--resolved {resolved} takes no overrides and no -m: the file holds all values")
        config = _read_resolved(stage, Path(resolved))
        launcher = os.environ.get(LAUNCHER)
        if launcher and not show and stage in ("train", "collect", "prune", "retrain", "evaluate"):
            from lobs_paper.stages.sweep import launched

            return _finish(stage, launched(stage, config, launcher))
    elif multirun:
        if stage in ("resolve", "report", "track"):
            raise ConfigError(f"lobs {stage} runs once for all experiments: -m is not accepted")
        from lobs_paper.stages.sweep import sweep

        return FAILURE if sweep(stage, words) else 0
    elif stage == "resolve":
        from lobs_paper.stages import resolve

        return _finish(stage, resolve.run(words))
    else:
        from lobs_paper.config.compose import load
        from lobs_paper.config.typed import typed

        everything = load(words)
        config = stage_config(everything, stage)
        if not show:
            with typed(words, everything):
                return _finish(stage, _by_hand(stage, everything, words))
    if show:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
        return 0
    return _finish(stage, run_stage(stage, config))


def _by_hand(stage: str, everything: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Run a stage as it was typed, and those before it that it needs."""
    from lobs_paper.config.compose import say_unread
    from lobs_paper.config.stage_parts import stage_config
    from lobs_paper.stages.prerequisites import refuse_stale, run_missing

    say_unread(stage, everything, words)
    run_missing(stage, everything, run_stage)
    refuse_stale(stage, everything)
    return run_stage(stage, stage_config(everything, stage))


def _compare(words: list[str]) -> int:
    from lobs_paper.config.errors import ConfigError
    from lobs_paper.stages.compare import OUTPUT, compare

    output = _take_option(words, "--output")
    if output is not None and not Path(output).name:
        raise ConfigError(f"--output {output!r} is not accepted: the name of two files, without .csv and .md")
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}: accepted are --output NAME and folders")
    compare(words, OUTPUT if output is None else Path(output))
    return 0


def _estimate(words: list[str]) -> int:
    from lobs_paper.stages.estimate import estimate

    estimate(words)
    return 0


def _finish(stage: str, metrics: dict[str, Any]) -> int:
    from lobs_paper.stages.printing import summary

    summary(stage, metrics)
    return 0


def _read_resolved(stage: str, path: Path) -> dict[str, Any]:
    """What `lobs resolve` wrote for a stage; anybody's file may do, as it names no code that conf/ does not name."""
    from lobs_paper.config.checks import validate
    from lobs_paper.config.errors import ConfigError
    from lobs_paper.config.own_names import check_names
    from lobs_paper.config.stage_parts import check_part
    from lobs_paper.config.yaml_files import read_yaml

    if not path.exists():
        raise ConfigError(f"{path} does not exist yet: run `lobs resolve` first")
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is no configuration: expected keys and values as `lobs resolve` writes them")
    try:
        validate(config)
        check_part(stage, config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except KeyError as error:  # of a group that the stage does not read, and that is there in part
        raise ConfigError(f"{path}: key {error} is missing: run `lobs resolve` again") from None
    check_names(config, path)
    return config


def _take_flag(words: list[str], *names: str) -> bool:
    found = [word for word in words if word in names]
    for word in found:
        words.remove(word)
    return bool(found)


def _take_option(words: list[str], name: str) -> str | None:
    if name not in words:
        return None
    from lobs_paper.config.errors import ConfigError

    index = words.index(name)
    if index + 1 == len(words):
        raise ConfigError(f"{name} needs the name of a file")
    value = words[index + 1]
    del words[index : index + 2]
    return value


def _complain(message: str, code: int = USAGE_ERROR) -> int:
    print(f"lobs: {' '.join(message.split())}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {line}" for name, line in STAGES.items()]
    return "\n".join(
        [
            "usage: lobs <stage> [key=value ...] [-m] [--cfg] [--resolved FILE]",
            "",
            "stages:",
            *lines,
            "",
            "  key=value        override a value or choose a group's file: density=0.05, method=magnitude",
            "  -m, --multirun   run every combination of comma-separated values: density=0.05,0.1",
            "  -c, --cfg        print the stage's configuration and stop",
            "  --resolved FILE  take the configuration from a file that `lobs resolve` wrote",
            "  -h, --help       this text; after a stage also its groups and keys",
        ]
    )


def _stage_help(stage: str) -> str:
    from lobs_paper.config.folder import config_dir
    from lobs_paper.config.stage_parts import STAGE_KEYS

    lines = [f"lobs {stage}: {STAGES[stage]}"]
    if stage == "compare":
        usage = "usage: lobs compare FOLDER... [--output NAME]"
        return "\n".join(
            [*lines, "", usage, "", "writes NAME.csv and NAME.md, comparison.csv and comparison.md without it"]
        )
    if stage == "estimate":
        return "\n".join([*lines, "", "usage: lobs estimate [EXPERIMENT/seedK/METHOD ...]"])
    if stage in STAGE_KEYS:
        lines += ["", f"reads: {', '.join(STAGE_KEYS[stage])}"]
    lines += ["", "groups:"]
    for group in sorted(path for path in config_dir().iterdir() if path.is_dir()):
        lines.append(f"  {group.name}: {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}")
    lines += ["", f"`lobs {stage} --cfg` prints the configuration."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
