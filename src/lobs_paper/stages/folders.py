"""Where a stage reads and writes: the folders of one experiment and seed, and the commands that fill them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lobs.base.atomic import replacing, sync_folder
from lobs_paper.config.own_code import own_code
from lobs_paper.config.typed import with_typed
from lobs_paper.files import read_json, remove_abandoned, require, write_json
from lobs_paper.progress import first_process
from lobs_paper.results import CHECKSUM, DIGEST, FILES, MADE_FROM, MAIN, MARKER, checksum, file_checksum, say_once
from lobs_paper.stages import provenance

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
        self._config = config
        self._run = Path(config["name"]) / f"seed{config['seed']}"
        self._method = config.get("method", {}).get("name")
        names = config["folders"]
        self._roots = [Path(root) for root in (names["output"], names["runs"]) if root]
        target = str(config.get("model", {}).get("_target_"))
        # A network without an experiment of its own is called after its class (conf/experiment/own.yaml).
        own = target.rpartition(".")[2] == config["name"]
        network = f"model._target_={target}" if own else f"experiment={config['name']}"
        self._overrides = f"{network} seed={config['seed']}"
        # Of the images and the earlier results that are read, as they are now and not when the stage ends.
        self._data = provenance.data_digests(config)
        self._read: dict[str, str] = {}

    def output(self, stage: str) -> Path:
        """The folder that the stage writes to."""
        return self._roots[0] / self._run / self._part(stage)

    @contextmanager
    def result(self, stage: str, metrics: Mapping[str, Any]) -> Iterator[Path]:
        """Write a stage's result: what was there before ends when the block begins, and the new one with its metrics.

        Args:
            stage: that writes.
            metrics: written last, with what the result was made from.

        Yields:
            The folder for all other files.
        """
        folder = self.output(stage)
        (folder / MARKER).unlink(missing_ok=True)
        sync_folder(folder)
        yield folder
        made_from = {**_asked(stage, self._config), "data": self._data, **self._read}
        write_json(folder / MARKER, provenance.sealed(metrics, folder, made_from))

    def holds(self, stage: str, file: str) -> bool:
        """Whether a file of a stage is there, whatever it was made from."""
        return (self._folder(stage) / file).exists()

    def input(self, stage: str, file: str) -> Path:
        """A file of an earlier stage's result, which must be whole and made from what is there now.

        Returns:
            Its path.

        Raises:
            ValueError: it does not exist yet, or is not of such a result; the message names the command that makes it.
        """
        path = require(self._folder(stage) / file, self.command(stage))
        if stage not in self._read:
            if reason := self.stale(stage):
                raise ValueError(reason)
            self._read[stage] = provenance.result_digest(path.parent)
        return path

    def metrics(self, stage: str, *needed: str) -> dict[str, Any]:
        """The metrics of an earlier stage, as `input`.

        Args:
            stage: the earlier one.
            needed: keys that have to be there.

        Returns:
            The metrics.

        Raises:
            ValueError: a key is missing, or as for `input`.
        """
        path = self.input(stage, MARKER)
        metrics = read_json(path, self.command(stage))
        for key in needed:
            if key not in metrics:
                raise ValueError(f"{path} is damaged, it has no {key!r}: run `{self.command(stage)}` again")
        return metrics

    def stale(self, stage: str, whole: Mapping[str, Any] | None = None, unknown: bool = True) -> str | None:
        """Why the result of a stage is not what a later one may go on with.

        Args:
            stage: whose result is there.
            whole: its own configuration, where that is known: it must have been made with these settings.
            unknown: whether a result that does not say what it was made from is taken, which is said.

        Returns:
            A sentence; None: nothing is known against it.
        """
        folder, command = self._folder(stage), self.command(stage)
        marker, again = folder / MARKER, f"run `{command}` again"
        if not marker.exists():
            return f"{folder} holds no finished result: {again}"
        metrics = read_json(marker, command)
        made = metrics.get(MADE_FROM)
        if not isinstance(made, dict):
            if not unknown:
                return f"{marker} does not say what it was made from: {again}"
            if (newer := self._newer(stage)) is not None:
                return f"{marker} is of an earlier version, and {newer} was run again since: {again}"
            if first_process():
                say_once(
                    f"{marker} is of an earlier version and does not say what it was made from: it is taken as it is"
                )
            return None
        if metrics.get(CHECKSUM) != checksum(metrics):
            return f"{marker} is damaged, it has another checksum: {again}"
        if not all(isinstance(made.get(key), dict) for key in ("settings", "data")):
            return f"{marker} is damaged, its {MADE_FROM} has no settings or data: {again}"
        if metrics.get(DIGEST) != provenance.result_digest(folder):
            return f"{marker} is about other files than lie beside it: {again}"
        for name, found in metrics.get(FILES, {}).items():
            if file_checksum(folder / name) != found:
                return f"{folder / name} is not the file that was written with {MARKER}: {again}"
        asked = {} if whole is None else _asked(stage, whole)
        if asked and (differ := provenance.other_settings(made["settings"], asked["settings"])):
            return (
                f"{differ[0]} was asked for, but {folder} was made with {differ[1]}: run "
                f"`{self.command(stage, differ[0])}` first, or give {differ[1]} here, too"
            )
        if asked and made.get("weights") != asked.get("weights"):
            return f"{folder} was made from other weights than model.weights now: {again}"
        if changed := _changed(made.get("code"), asked.get("code")):
            return f"{folder} was made by other code than {', '.join(changed)} now: {again}"
        for earlier in (name for name in MAIN if name in made):
            there = self._folder(earlier)
            main = there / f"{MAIN[earlier]}.safetensors"
            if main.exists() and provenance.result_digest(there) != made[earlier]:
                return f"{folder} was made from another result of {earlier} than {there} holds: {again}"
        if any(made["data"][split] != self._data[split] for split in made["data"].keys() & self._data.keys()):
            return f"{folder} was made from other images than data={self._config['data']['name']} holds now: {again}"
        return None

    def _newer(self, stage: str) -> str | None:
        """An earlier stage whose result is of this version, unlike that of `stage`."""
        for earlier in MAIN:
            if earlier == stage:
                return None
            marker = self._folder(earlier) / MARKER
            if marker.exists() and MADE_FROM in read_json(marker, self.command(earlier)):
                return earlier
        return None

    def command(self, stage: str, overrides: str = "") -> str:
        """The command that runs a stage of this experiment, with what the user has typed beside."""
        method = "" if stage in ("train", "collect") else f" method={self._method}"
        return with_typed(f"lobs {stage} {self._overrides}{method}{overrides and f' {overrides}'}", stage)

    def _folder(self, stage: str) -> Path:
        """The stage's first folder that holds anything: files of two results must not be mixed. Or else the last."""
        candidates = [root / self._run / self._part(stage) for root in self._roots]
        return next((folder for folder in candidates if folder.is_dir() and any(folder.iterdir())), candidates[-1])

    def _part(self, stage: str) -> Path:
        return Path(stage) if stage in ("train", "collect") else Path(self._method) / stage


def _asked(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's result depends on beside images and earlier results: settings, own code, foreign weights."""
    asked: dict[str, Any] = {"settings": provenance.settings(stage, config), "code": own_code(config)}
    if stage == "train" and config["model"].get("weights") is not None:
        from lobs_paper.networks.pretrained import origin

        asked["weights"] = origin(config["model"])
    return asked


def _changed(made: object, asked: object) -> list[str]:
    """The user's own modules that have changed since; of results before they were noted nothing is known."""
    if not isinstance(made, dict) or not isinstance(asked, dict):
        return []
    return [name for name in {**made, **asked} if made.get(name) != asked.get(name)]
