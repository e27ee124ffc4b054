"""Which way of sharing a budget out between layers keeps a network's outputs best, on held-out training images.

    lobs train experiment=lenet300 seed=0 data.holdout=10000 folders.runs=validation_runs  # then collect
    python benchmarks/allocation.py --runs validation_runs --output reports/allocation.md

Takes every network under `--runs` (`<experiment>/seed<k>/train/model.safetensors`); what is done with it says NOTE.
Statistics are collected where there are none. Rows already in the table's CSV file are not computed again, so that a
long comparison can be made in parts (`--only`, `--densities`).
"""

from __future__ import annotations

import argparse
import csv
from math import exp, log
from pathlib import Path

import torch
from torch import nn

import lobs
from lobs.allocation.budget import Budget, problem
from lobs.allocation.knapsack import equal_slopes
from lobs.allocation.loss_curves import loss_curves
from lobs.allocation.output_distance import OutputDistance, along_errors, measured_losses
from lobs.allocation.sharing import Decision, Sharing
from lobs.calibration.batches import CalibrationBatches
from lobs.layers.matrix import set_weight_matrix
from lobs.registry import ALLOCATIONS
from lobs.solvers import PruningPath
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import load_tensors, tensor_file, write_csv, write_text
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.stages.network_files import HELD_OUT
from lobs_paper.training.evaluation import error_percent

NETWORKS: dict[str, type[nn.Module]] = {"lenet300": LeNet300, "lenet5": LeNet5}
HELD_OUT_IMAGES = 10_000
BATCH = 250
NOTE = """
Networks pruned with exact_obs by every allocation, without retraining. They were trained without the last 10,000
training images of MNIST, on which error and KL divergence from the dense network are measured here; what an allocation
measures itself, it measures on the first training images. No test image is read. Made by benchmarks/allocation.py.
"""
# Two variants of `measured`, to see what its dynamic programming and its distance are good for.
HULL, SQUARED = "measured, on hulls", "measured, squared distance"
EXTRA = (HULL, SQUARED)
COLUMNS = ["network", "density", "allocation", "error_percent", "kl", "layers"]


def main() -> None:
    """Compute what is missing, then print (and write) the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--output", type=Path, help="Markdown file to write, with a CSV file beside it")
    parser.add_argument("--images", type=int, default=2000, help="calibration images of the measuring allocations")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.07, 0.05, 0.035, 0.02, 0.009])
    parser.add_argument("--only", default="*", help="pattern of the networks, as in lenet300/seed*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = options.output.with_suffix(".csv") if options.output else None
    rows = list(csv.DictReader(store.open())) if store and store.exists() else []
    train, held_out = load_training_data(options.data, "mnist", HELD_OUT_IMAGES)
    for folder in sorted(path.parents[1] for path in options.runs.glob(f"{options.only}/train/model.safetensors")):
        network = str(folder.relative_to(options.runs))
        known = {(row["density"], row["allocation"]) for row in rows if row["network"] == network}
        missing = [
            (density, allocation)
            for density in options.densities
            for allocation in (None, *ALLOCATIONS, *EXTRA)
            if (str(density), str(allocation)) not in known
        ]
        if missing:
            for row in compare(folder, missing, train, held_out, options.images):
                rows.append({"network": network, **row})
                if store:
                    write_csv(store, rows, COLUMNS)
    text = markdown(rows)
    print(text)
    if options.output:
        write_text(options.output, text)


def compare(folder: Path, wanted: list, train: Split, held_out: Split, images: int):
    """One row per density and allocation; the allocation None is the dense network."""
    model, paths = load(folder, train)
    batches = list(train.part(0, images).batches(BATCH))
    measure = OutputDistance(model, held_out.batches(BATCH))
    curves = {name: loss_curves(paths, name, model=model, batches=batches) for name in ("fisher", "measured")}
    curves["measured_joint"] = curves["fisher"]
    curves[SQUARED] = measured_losses(model, paths, batches, distance="squared")
    for density, allocation in wanted:
        if allocation is None:
            decision = Decision(dict.fromkeys(paths, 0))
        elif allocation == HULL:
            dense = {name: along_errors(curves["measured"][name], path) for name, path in paths.items()}
            decision = Decision(equal_slopes(dense, problem(paths, Budget(density=density))))
        else:
            name, losses = "measured" if allocation == SQUARED else allocation, curves.get(allocation)
            others = None if losses else CalibrationBatches(list(train.part(images, 2 * images).batches(BATCH)))
            sharing = Sharing(Budget(density=density), name, CalibrationBatches(batches), others, losses)
            decision = sharing.decision(model, paths, {})
        counts = decision.counts
        for name, count in counts.items():
            set_weight_matrix(measure.layers[name], decision.weighted(name, paths[name]).at(count)[0])
        yield {
            "density": str(density),
            "allocation": str(allocation),
            "error_percent": f"{error_percent(measure.model, held_out):.2f}",
            "kl": f"{measure.whole():.5f}",
            "layers": " / ".join(f"{100 * (1 - count / paths[name].removable):.3g}" for name, count in counts.items()),
        }


def load(folder: Path, train: Split) -> tuple[nn.Module, dict[str, PruningPath]]:
    """A trained network and the exact_obs path of its layers; statistics are collected where there are none."""
    file = folder / "train" / "model.safetensors"
    held_out = tensor_file(file, "lobs train").metadata.get(HELD_OUT)
    if held_out != str(HELD_OUT_IMAGES):
        raise ValueError(f"{file} was trained with data.holdout={held_out}, needed is {HELD_OUT_IMAGES}")
    model = NETWORKS[folder.parent.name]()
    model.load_state_dict(load_tensors(file, "lobs train"))
    stored = folder / "collect" / "statistics.safetensors"
    if not stored.exists():
        lobs.collect_statistics(model, train.batches(BATCH)).save(stored)
    return model, lobs.layer_paths(model, lobs.Statistics.load(stored), "exact_obs")


def markdown(rows: list[dict[str, str]]) -> str:
    """A table per network, and one of all networks relative to `relative`."""
    value = {(row["network"], row["density"], row["allocation"]): row for row in rows}
    networks = sorted({row["network"] for row in rows})
    densities = sorted({row["density"] for row in rows}, key=float, reverse=True)
    allocations = [name for name in (*ALLOCATIONS, *EXTRA) if any(row["allocation"] == name for row in rows)]
    heads = ["allocation", *(f"{100 * float(density):g}%" for density in densities)]
    lines = ["# How to share a budget out between layers", "", NOTE.strip(), ""]
    for network in networks:
        dense = value[network, densities[0], "None"]["error_percent"]
        cells = [[value.get((network, density, name)) for density in densities] for name in allocations]
        lines += [f"## {network}: dense error {dense}%", "", "Error in % (KL divergence in nats) by density.", ""]
        texts = [[f"{row['error_percent']} ({row['kl']})" if row else "-" for row in line] for line in cells]
        lines += _table(heads, allocations, texts)
        lines += ["", "Densities of the layers in %, in the order of their calls.", ""]
        lines += _table(heads, allocations, [[row["layers"] if row else "-" for row in line] for line in cells])
        lines.append("")
    lines += ["## All networks", "", "Geometric means of KL divergence / error, each over that of `relative`.", ""]
    groups = [*([density] for density in densities), densities]
    texts = [
        [" / ".join(_ratio(value, networks, group, name, key) for key in ("kl", "error_percent")) for group in groups]
        for name in allocations
    ]
    return "\n".join([*lines, *_table([*heads, "all"], allocations, texts)]) + "\n"


def _table(heads: list[str], names: list[str], cells: list[list[str]]) -> list[str]:
    rows = [heads, ["---"] * len(heads), *([name, *line] for name, line in zip(names, cells, strict=True))]
    return [f"| {' | '.join(row)} |" for row in rows]


def _ratio(value: dict, networks: list[str], densities: list[str], name: str, key: str) -> str:
    logs = []
    for network in networks:
        for density in densities:
            row, base = value.get((network, density, name)), value.get((network, density, "relative"))
            if row and base:
                logs.append(log(float(row[key]) / float(base[key])))
    return f"{exp(sum(logs) / len(logs)):.3f}" if logs else "-"


if __name__ == "__main__":
    main()
