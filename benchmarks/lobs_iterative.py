"""How far the published algorithm goes: L-OBS in rounds with light retraining, within the paper's iterations.

    lobs train experiment=lenet300 seed=0 data.holdout=10000 folders.runs=validation_runs
    python benchmarks/lobs_iterative.py --runs validation_runs --output reports/lobs_iterative.md

Takes the networks under `--runs` (`<experiment>/seed<k>/train/model.safetensors`). What is tried is in TASKS.
Rows that are in the CSV file beside the table are not computed again.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import lobs
from lobs.base.fingerprint import digest
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import load_tensors, tensor_file, write_csv, write_text
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.report.markdown import markdown as table_of
from lobs_paper.stages.network_files import HELD_OUT
from lobs_paper.training.fit import Recipe, Training
from lobs_paper.training.retraining import retrain

HELD_OUT_IMAGES = 10_000
NOTE = """
L-OBS with its inverse kept fixed, pruned in rounds of equal length with retraining between them, in as many iterations
as the paper says in all. The networks were trained without the last 10,000 training images of MNIST, on which all
errors here are measured; no test image is read. Best first. Made by benchmarks/lobs_iterative.py.
"""


@dataclass(frozen=True)
class Setting:
    """One way of doing it.

    Attributes:
        rounds: densities before the last one.
        damping: of the inverse, relative to the mean diagonal.
        allocation: of the budget.
        learning_rate: of SGD with momentum 0.9, a cosine per round.
        batch_size: images per minibatch.
        targets: ``labels``, or ``dense`` for the dense network's outputs.
        resolve: solve the final mask's weights anew in every round, which the published algorithm does not.
    """

    rounds: tuple[float, ...]
    damping: float
    allocation: str
    learning_rate: float
    batch_size: int
    targets: str = "labels"
    resolve: bool = False


@dataclass(frozen=True)
class Task:
    """A row of the paper's Table 1, and what is tried for it."""

    network: type[nn.Module]
    density: float
    iterations: int
    images: int
    settings: tuple[Setting, ...]


SIX, TEN = (0.1, 0.06, 0.04, 0.027, 0.02), (0.2, 0.13, 0.09, 0.065, 0.047, 0.035, 0.027, 0.021, 0.0175)
A = Setting(SIX, 3, "relative", 0.3, 1024)
B = Setting((0.05, 0.02), 0.3, "relative", 0.05, 256)
FIVE, NINE = (0.1, 0.05, 0.025, 0.014), (0.25, 0.15, 0.09, 0.055, 0.035, 0.022, 0.015, 0.011)
TASKS = {
    "lenet300": Task(
        LeNet300,
        0.015,
        643,
        50_000,
        (
            A,
            replace(A, allocation="fisher"),
            replace(A, damping=1),
            replace(A, damping=10),
            replace(A, rounds=(0.07, 0.03)),
            replace(A, rounds=TEN),
            replace(A, rounds=TEN, allocation="fisher"),
            replace(A, learning_rate=0.2),
            replace(A, learning_rate=0.45),
            replace(A, batch_size=256, learning_rate=0.15),
            replace(A, batch_size=2048, learning_rate=0.4),
            replace(A, targets="dense"),
            replace(A, targets="dense", learning_rate=0.45),
            replace(A, targets="dense", rounds=TEN),
            replace(A, targets="dense", rounds=TEN, allocation="fisher"),
            replace(A, targets="dense", rounds=TEN, allocation="fisher", learning_rate=0.45),
            replace(A, targets="dense", rounds=TEN, allocation="fisher", damping=10),
            replace(A, resolve=True, damping=0.1),
        ),
    ),
    "lenet5": Task(
        LeNet5,
        0.009,
        841,
        10_000,
        (
            B,
            replace(B, allocation="fisher"),
            replace(B, damping=1),
            replace(B, damping=3),
            replace(B, rounds=FIVE),
            replace(B, rounds=NINE),
            replace(B, rounds=NINE, damping=3),
            replace(B, rounds=FIVE, learning_rate=0.1),
            replace(B, rounds=FIVE, targets="dense"),
            replace(B, rounds=NINE, targets="dense"),
            replace(B, rounds=NINE, targets="dense", damping=3),
            replace(B, rounds=NINE, targets="dense", learning_rate=0.1),
            replace(B, resolve=True, damping=0.1),
        ),
    ),
}
RESULTS = ["error_before_last_percent", "error_percent"]
KEYS = ["network", "rounds", "damping", "allocation", "learning_rate", "batch_size", "targets", "resolve"]


def main() -> None:
    """Compute what is missing, then print (and write) the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write, with a CSV file beside it")
    parser.add_argument("--only", default="*/seed*", help="pattern of the networks, as in lenet300/seed*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = options.output.with_suffix(".csv")
    rows = list(csv.DictReader(store.open())) if store.exists() else []
    train, held_out = load_training_data(options.data, "mnist", HELD_OUT_IMAGES)
    for file in sorted(options.runs.glob(f"{options.only}/train/model.safetensors")):
        name, seed = file.parents[2].name, file.parents[1].name
        task = TASKS[name]
        if tensor_file(file, "lobs train").metadata.get(HELD_OUT) != str(HELD_OUT_IMAGES):
            raise ValueError(f"{file} was not trained with data.holdout={HELD_OUT_IMAGES}")
        for setting in task.settings:
            key = digest([seed, name, setting])
            if any(row["key"] == key for row in rows):
                continue
            dense = task.network()
            dense.load_state_dict(load_tensors(file, "lobs train"))
            found = attempt(task, setting, dense, (train, held_out), int(seed.removeprefix("seed")))
            shown = {**asdict(setting), "rounds": " ".join(f"{100 * share:g}" for share in setting.rounds)}
            rows.append({"key": key, "network": name, "seed": seed, **shown, **found})
            write_csv(store, rows, ["key", "seed", *KEYS, *RESULTS])
            print(rows[-1], flush=True)
    text = markdown(pd.DataFrame(rows))
    print(text)
    write_text(options.output, text)


def attempt(task: Task, setting: Setting, dense: nn.Module, splits: tuple[Split, Split], seed: int) -> dict[str, str]:
    """Errors of one setting, right before and after the last round's retraining."""
    train, held_out = splits
    solver = lobs.solvers.make("lobs", damping=setting.damping, resolve=setting.resolve)
    images = train.part(0, task.images)

    def prune(network: nn.Module, density: float):
        statistics = lobs.collect_statistics(network, images.batches(250))
        batches = list(images.part(0, 2000).batches(250))
        result = lobs.prune(
            network, statistics, solver, density=density, allocation=setting.allocation, batches=batches
        )
        return result.model, result.masks

    densities = [*setting.rounds, task.density]
    each = task.iterations // len(densities)
    recipe = Recipe("sgd", setting.learning_rate, 0.9, 0.0, "cosine", setting.batch_size, each)
    teacher = dense if setting.targets == "dense" else None
    training = Training(train, held_out, recipe, seed, each, "cpu", teacher)
    done = retrain(*prune(dense, densities[0]), training, densities[1:], prune)
    last = done.rounds[-1]
    values = (last["error_after_pruning_percent"], last["error_after_retraining_percent"])
    return {key: f"{value:.2f}" for key, value in zip(RESULTS, values, strict=True)}


def markdown(rows: pd.DataFrame) -> str:
    """A table per network, mean errors over its seeds."""
    rows = rows.astype(dict.fromkeys(RESULTS, float))
    lines = ["# How far iterative L-OBS goes", "", NOTE.strip()]
    for name, group in rows.groupby("network", sort=False):
        task = TASKS[str(name)]
        table = group.groupby(KEYS[1:], sort=False)[RESULTS].agg(["mean", "count"])
        table = pd.concat([table[RESULTS[0], "mean"], table[RESULTS[1], "mean"], table[RESULTS[1], "count"]], axis=1)
        table.columns = ["before the last retraining %", "after it %", "seeds"]
        table = table.sort_values("after it %", kind="stable").reset_index()
        lines += ["", f"## {name} at {100 * task.density:g}%, {task.iterations} iterations", ""]
        table = table.rename(columns={"rounds": "rounds %"})
        shown = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
        lines.append(table_of(shown, left=["rounds %", "allocation", "targets"]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
