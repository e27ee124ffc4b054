"""Where the configuration lies: a conf/ of one's own, or ours."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path

from lobs_paper.config.errors import ConfigError

ROOT_CONFIG = "config"
CONFIG_FILE = f"{ROOT_CONFIG}.yaml"


def config_dir() -> Path:
    """The folder that LOBS_CONF names, else `./conf` if it is ours, else the installed package's or the checkout's.

    Returns:
        An absolute path.

    Raises:
        ConfigError: none of them exists.
    """
    named = os.environ.get("LOBS_CONF")
    if named:
        if not (Path(named) / CONFIG_FILE).is_file():
            raise ConfigError(f"LOBS_CONF={named} holds no {CONFIG_FILE}: name a folder like conf/ of the sources")
        return Path(named).resolve()
    here = Path("conf").resolve()
    package = Path(__file__).resolve().parents[1]
    for folder in (here, package / "conf", package.parents[1] / "conf"):
        if (folder / CONFIG_FILE).is_file():
            if folder != here or _is_ours((folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")):
                return folder
            _mention_foreign(folder)
    raise ConfigError(f"no configuration found: expected conf/{CONFIG_FILE} in the working directory")


def _is_ours(text: str) -> bool:
    """Whether a configuration's defaults list names our schema and a method; a mistake elsewhere in it is no matter."""
    return all(re.search(rf"^\s*-\s*{entry}", text, re.MULTILINE) for entry in (r"schema\s*(#.*)?$", r"method\s*:"))


@cache
def _mention_foreign(folder: Path) -> None:
    print(
        f"lobs: conf/{CONFIG_FILE} is another program's (`schema` and `method` are not among its defaults) and is left "
        "alone: LOBS_CONF=conf takes it all the same",
        file=sys.stderr,
    )
