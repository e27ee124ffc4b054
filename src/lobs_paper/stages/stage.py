"""What every stage needs: where files lie, the device, the clock and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobs_paper.config.budget import requested
from lobs_paper.files import read_json, require

if TYPE_CHECKING:
    import torch
    from torch import nn

# Metadata of a network's file: the training images held out (data.validation) when it was trained.
HELD_OUT = "validation"
# And of a network that was not trained here: `lobs_paper.networks.pretrained.origin`.
ORIGIN = "origin"
# In the folder of a sweep's point: what was overridden there, and why it failed if it did.
POINT = "point.json"


class Folders:
    """The folders of one experiment and seed: `runs/<name>/seed<k>/<stage>` or `.../<method>/<stage>`.

    A stage reads from `paths.runs`. In a sweep it writes into the folder of its point (`paths.output`), and what an
    earlier sweep over the same point has written there is preferred to `paths.runs`.

    Args:
        config: of the stage.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._run = Path(config["name"]) / f"seed{config['seed']}"
        self._method = config.get("method", {}).get("name")
        paths = config["paths"]
        self._roots = [Path(root) for root in (paths["output"], paths["runs"]) if root]
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


class Stopwatch:
    """Wall time and peak memory of a stage, for `timings.json`: the only file that may hold either."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.layers: dict[str, float] = {}

    def each(self, names: Iterable[str]) -> Iterator[str]:
        """The names, one after the other, while noting what is spent on each."""
        for name in names:
            start = time.perf_counter()
            yield name
            self.layers[name] = self.layers.get(name, 0.0) + time.perf_counter() - start

    def result(self, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Seconds in all and per layer, peak memory, and what they depend on."""
        return {
            "total": round(time.perf_counter() - self._start, 3),
            "layers": {name: round(seconds, 4) for name, seconds in self.layers.items()},
            "peak_memory_mib": peak_memory_mib(),
            "threads": config["threads"],
            "device": str(device),
        }


def ceiling_bytes(config: Mapping[str, Any]) -> float | None:
    """Key `memory`, GiB, in bytes; None: what the machine has."""
    return None if config["memory"] is None else config["memory"] * 2**30


def prepare(config: Mapping[str, Any]) -> torch.device:
    """Fix the number of threads and the seeds, and choose the device.

    Returns:
        Where to compute.

    Raises:
        ValueError: CUDA is asked for where there is none.
    """
    import torch

    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])
    if config["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is not accepted here: this machine has no CUDA device; use auto or cpu")
    return torch.device("cuda" if config["device"] != "cpu" and torch.cuda.is_available() else "cpu")


def save_network(
    config: Mapping[str, Any], path: Path, network: nn.Module, marks: Mapping[str, str] | None = None
) -> None:
    """Write a network's weights, marked with how many training images were held out from them, and further marks."""
    from lobs_paper.files import save_tensors

    save_tensors(path, network.state_dict(), {HELD_OUT: str(config["data"]["validation"]), **(marks or {})})


def load_network(config: Mapping[str, Any], path: Path, made_by: str) -> nn.Module:
    """The experiment's network with the weights of a file.

    Args:
        config: of the stage.
        path: a state dict that `save_network` wrote.
        made_by: the command that writes it.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: the weights belong to another network, or have seen the images that are to be held out.
    """
    import torch

    from lobs_paper.files import load_tensors, tensor_metadata
    from lobs_paper.networks.build import build

    # Convolutions are up to four times as fast this way on a CPU.
    network = build(config["model"]).to(memory_format=torch.channels_last)
    try:
        network.load_state_dict(load_tensors(path, made_by))
    except RuntimeError:
        raise ValueError(f"{path} holds another network than model={config['model']}: run `{made_by}`") from None
    held_out, asked = tensor_metadata(path).get(HELD_OUT), str(config["data"]["validation"])
    if held_out != asked:
        raise ValueError(
            f"data.validation={asked} was asked for, but {path} was trained with data.validation={held_out}, so its "
            f"error there would mean nothing: run `{made_by} data.validation={asked} paths.runs=...` and give the same "
            f"paths.runs here"
        )
    return network


def require_same_budget(config: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    """The prune stage's metrics, once they are known to belong to the budget that this stage is asked for.

    Returns:
        The metrics.

    Raises:
        ValueError: the network on disk was pruned to another budget.
    """
    path = folders.input("prune", "metrics.json")
    metrics = read_json(path, folders.command("prune"))
    asked, found = requested(config), metrics["requested"]
    if asked != found:
        shown = [" ".join(f"{key}={value}" for key, value in budget.items()) for budget in (asked, found)]
        key = next(iter(asked))
        raise ValueError(
            f"{shown[0]} was asked for, but {path.parent} was pruned with {shown[1]}: "
            f"run `{folders.command('prune')} {key}={config[key]}` first"
        )
    return metrics


def summary(stage: str, metrics: Mapping[str, Any]) -> None:
    """Print a stage's metrics: its scalars, then a table for each list of rows."""
    print_table(f"lobs {stage}", [{"metric": key, "value": value} for key, value in flat(metrics).items()])
    for key, value in metrics.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            print_table(key, value)
        elif isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            print(*(f"{key}: {entry}" for entry in value), sep="\n")


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The scalars of nested metrics, keys joined by dots; lists are left out."""
    scalars: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            scalars.update(flat(value, f"{prefix}{key}."))
        elif not isinstance(value, list):
            scalars[prefix + key] = value
    return scalars


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share their keys as a table; numbers to six digits."""
    from rich.console import Console
    from rich.table import Table

    result = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
        result.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(cell(row.get(column)) for column in columns))
    # Without a terminal rich would assume 80 columns and fold every heading.
    Console(width=None if sys.stdout.isatty() else 160).print(result)


def cell(value: object) -> str:
    """A value of a table as text: numbers to six digits."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def peak_memory_mib() -> float:
    """The process's largest resident set so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a new program inherits from the process that started it.
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if peaks:
            return round(int(peaks[0]) / 1024, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
