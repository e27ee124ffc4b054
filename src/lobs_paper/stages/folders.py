"""Where a stage reads and writes: the folders of one experiment and seed, and the commands that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobs.base.atomic import replacing
from lobs_paper.files import remove_abandoned, require

# In the folder of a sweep's point: what was overridden there, and why it failed if it did.
POINT = "point.json"
_PROBE = 2**16  # bytes that have to fit


def writable(folder: Path) -> None:
    """Try out the folder that a stage will write to, before hours of work are spent, and rid it of abandoned files.

    Args:
        folder: made where it is missing. What keeps it from being written to is an OSError that names it.
    """
    with replacing(folder / "probe") as file:
        file.write_bytes(bytes(_PROBE))
    (folder / "probe").unlink(missing_ok=True)  # another process of the same stage may have been first
    remove_abandoned(folder)


class Folders:
    """The folders of one experiment and seed: `runs/<name>/seed<k>/<stage>` or `.../<method>/<stage>`.

    A stage reads from `folders.runs`. In a sweep it writes into the folder of its point (`folders.output`), and what an
    earlier sweep over the same point has written there is preferred to `folders.runs`.

    Args:
        config: of the stage.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._run = Path(config["name"]) / f"seed{config['seed']}"
        self._method = config.get("method", {}).get("name")
        names = config["folders"]
        self._roots = [Path(root) for root in (names["output"], names["runs"]) if root]
        target = str(config.get("model", {}).get("_target_"))
        # A network without an experiment of its own is called after its class (conf/experiment/own.yaml).
        own = target.rpartition(".")[2] == config["name"]
        network = f"model._target_={target}" if own else f"experiment={config['name']}"
        self._overrides = f"{network} seed={config['seed']}"

    def output(self, stage: str) -> Path:
        """The folder that the stage writes to."""
        return self._roots[0] / self._run / self._part(stage)

    def input(self, stage: str, file: str) -> Path:
        """A file of an earlier stage.

        Returns:
            Its path.

        Raises:
            ValueError: it does not exist yet; the message names the command that makes it.
        """
        candidates = [root / self._run / self._part(stage) / file for root in self._roots]
        path = next((path for path in candidates if path.exists()), candidates[-1])
        return require(path, self.command(stage))

    def command(self, stage: str) -> str:
        """The command that runs a stage of this experiment."""
        method = "" if stage in ("train", "collect") else f" method={self._method}"
        return f"lobs {stage} {self._overrides}{method}"

    def _part(self, stage: str) -> Path:
        return Path(stage) if stage in ("train", "collect") else Path(self._method) / stage
