"""`lobs estimate`: how long the runs of a matrix.yaml will take on this machine, and how much disk.

Nothing is known beforehand but the configuration. A network's seconds per picture (decoding included), and a solver's
and a product's seconds per multiplication, are timed here on little of the data, and multiplied by what the stages do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lobs.calibration.statistics import LayerStatistics
from lobs.layers.matrix import matrix_shape
from lobs.layers.network import prunable_layers
from lobs.layers.view import Prunable
from lobs.solvers import make
from lobs_paper.config.choices import THRESHOLDS
from lobs_paper.config.errors import ConfigError
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.networks.build import build
from lobs_paper.progress import progress
from lobs_paper.stages.environment import prepare
from lobs_paper.stages.printing import clock, print_table
from lobs_paper.stages.prune import BUDGETS, CURVE_DENSITIES, CURVE_IMAGES
from lobs_paper.training.evaluation import errors
from lobs_paper.training.fit import Recipe, Training, fit

SEED_STAGES = ("train", "collect")
METHOD_STAGES = ("prune", "retrain", "evaluate")
TIMED_PICTURES = 16
TIMED_STEPS = 2
TIMED_PRODUCT = 1024  # rows and columns of the matrix whose product is timed
TIMED_LAYER = (32, 512)  # units and inputs of the layer that a solver is timed on
# Solvers that take long; the removals that L-OBS solves together, and from what on exact OBS goes by groups ("auto").
SECOND_ORDER = ("lobs", "exact_obs")
LOBS_BLOCK, EXACT_GROUP, EXACT_MOST = 96, 512, 3e14
# DVC keeps a copy of every output in its cache where the file system cannot share blocks.
COPIES = 2


@dataclass(frozen=True)
class Layer:
    """A layer as a matrix, and how many samples of its inputs a picture gives."""

    rows: int
    inputs: int
    samples: int


@dataclass(frozen=True)
class Rates:
    """What was timed of an experiment.

    Attributes:
        measure: seconds per picture of a forward pass, decoding included.
        learn: seconds per picture of a training step, decoding and random crops included.
        product: seconds per multiplication of second moments.
        layers: of the network.
        parameters: in all.
        measured: pictures that errors are measured on.
    """

    measure: float
    learn: float
    product: float
    layers: list[Layer]
    parameters: int
    measured: int


def estimate(runs: Iterable[str] = (), resolved: Path = Path("resolved")) -> dict[str, Any]:
    """Print hours and GiB of every stage of some runs that is not finished yet.

    Args:
        runs: ``<experiment>/seed<k>/<method>``; none: all of them.
        resolved: what `lobs resolve` wrote.

    Returns:
        ``rows`` per stage, and in all ``hours``, ``gib``, ``free_gib``.

    Raises:
        ConfigError: a run is not among those resolved.
    """
    known = sorted(str(path.parent.relative_to(resolved)) for path in resolved.glob("*/seed*/*/prune.yaml"))
    chosen = list(runs) or known
    unknown = [run for run in chosen if run not in known]
    if not known:
        raise ConfigError(f"nothing is resolved in {resolved} yet: run `lobs resolve` first")
    if unknown:
        raise ConfigError(f"runs {unknown} are not accepted: one of {', '.join(known)}")
    places = {run: str(Path(run).parent) for run in chosen}
    instances = [(place, stage) for place in dict.fromkeys(places.values()) for stage in SEED_STAGES]
    instances += [(run, stage) for run in chosen for stage in METHOD_STAGES]
    rates: dict[str, Rates] = {}
    rows: list[dict[str, Any]] = []
    for place, stage in progress("timing")(instances):
        config, seed = _read(resolved / place / f"{stage}.yaml"), places.get(place, place)
        if (Path(config["folders"]["output"] or config["folders"]["runs"]) / place / stage / "metrics.json").exists():
            rows.append({"stage": f"{place}/{stage}", "time": "finished", "hours": 0.0, "gib": 0.0})
            continue
        if seed not in rates:
            rates[seed] = timed(_read(resolved / seed / "train.yaml"))
        collect = {**_read(resolved / seed / "collect.yaml")["collect"], **config.get("collect", {})}
        taken = seconds(stage, {**config, "collect": collect}, rates[seed])
        gib = COPIES * stored(stage, rates[seed]) / 2**30
        rows.append({"stage": f"{place}/{stage}", "time": clock(taken), "hours": taken / 3600, "gib": gib})
    total = {"hours": sum(row["hours"] for row in rows), "gib": sum(row["gib"] for row in rows)}
    free = shutil.disk_usage(".").free / 2**30
    print_table("what is left to do, from a short timing on this machine", rows)
    print(
        f"in all about {total['hours']:.3g} hours and {total['gib']:.3g} GiB with DVC's copies ({free:.3g} GiB are "
        "free); stages that are finished are not run again, and what was stopped goes on"
    )
    return {"rows": rows, **total, "free_gib": free}


def seconds(stage: str, config: Mapping[str, Any], rates: Rates) -> float:
    """What a stage takes: its passes over pictures, its training steps, its solver's multiplications.

    Args:
        stage: one of dvc.yaml.
        config: of the stage, with key `collect` of the experiment.
        rates: of its network.

    Returns:
        Seconds. Sharing a budget out, compacting and writing files are left out.
    """
    images = (config["collect"]["images"] or rates.measured) * config["collect"]["augmented_copies"]
    devices = config.get("devices", 1) if config["device"] != "cpu" and torch.cuda.is_available() else 1
    collecting = rates.measure + rates.product * sum(layer.samples * layer.inputs**2 for layer in rates.layers)
    if stage == "train":
        return 3 * rates.measured * rates.measure
    if stage == "collect":
        return images * collecting / devices
    if stage == "evaluate":
        return (3 * rates.measured + 2 * images) * rates.measure
    method = config["method"]
    if stage == "prune":
        points = len(config["density_grid"] or BUDGETS) + 1
        first_layer = len(config["density_grid"] or CURVE_DENSITIES)
        passes = (points + first_layer + 1) * rates.measured + points * CURVE_IMAGES
        corrections = 2 * images * (method["correct"] != "none")
        return (passes + corrections) * rates.measure + solving(config, rates.layers, points)
    recipe, rounds = config["retrain"], len(method["rounds"] or ()) + 1
    steps = rounds * recipe["iterations"]
    curve = rounds * (recipe["iterations"] // recipe["measure_every"] + 2) * rates.measured * rates.measure
    again = 0.0
    if rounds > 1 and method["allocation"] not in THRESHOLDS:
        passes = min(images, config["collect"]["images_per_pass"] or images)
        again = (rounds - 1) * (passes * collecting + solving(config, rates.layers, 1))
    return (steps * recipe["batch_size"] * rates.learn + curve) / devices + again


def solving(config: Mapping[str, Any], layers: Iterable[Layer], points: int) -> float:
    """Seconds that a method's solver takes for all layers, by its own pace on a small one.

    Args:
        config: of stage prune or retrain.
        layers: of the network.
        points: at how many densities weights are asked for.

    Returns:
        Seconds.
    """
    method, density = config["method"], config["density"] or 0.5
    if method["allocation"] in THRESHOLDS or method["solver"] not in SECOND_ORDER:
        return 0.0
    rows, inputs = TIMED_LAYER
    samples = torch.randn(2 * inputs, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = LayerStatistics(samples.T @ samples / len(samples), len(samples), len(samples), False)
    solver = make(method["solver"], **method["options"])

    def solve() -> None:
        path = solver(samples[:rows].float(), statistics)
        path.at(round((1 - density) * path.removable))

    pace = _time(solve) / multiplications(method, Layer(rows, inputs, 1), density, 1)
    return pace * sum(multiplications(method, layer, density, points) for layer in layers)


def multiplications(method: Mapping[str, Any], layer: Layer, density: float, points: int) -> float:
    """What a solver computes for a layer ``[r, d]``: d^3 for the inverse, and for the rows what its docstring says."""
    rows, inputs = layer.rows, layer.inputs
    if method["solver"] == "exact_obs":
        whole = rows * 2 / 3 * inputs**3
        grouped = method["options"].get("group_size") is not None and whole > EXACT_MOST
        return inputs**3 + (rows * 2 / 3 * inputs * EXACT_GROUP**2 if grouped else whole)
    if method["options"].get("resolve"):
        return inputs**3 + points * rows * (density * inputs) ** 3 / 3
    return inputs**3 + rows * inputs**3 / LOBS_BLOCK


def stored(stage: str, rates: Rates) -> float:
    """Bytes of a stage's large files: networks in float32, masks, second moments in float64."""
    weights = sum(layer.rows * layer.inputs for layer in rates.layers)
    if stage == "collect":
        return 8.0 * sum(layer.inputs**2 for layer in rates.layers)
    masks = weights if stage in ("prune", "retrain") else 0
    return 0.0 if stage == "evaluate" else 4.0 * rates.parameters + masks


def timed(config: Mapping[str, Any]) -> Rates:
    """Time an experiment's network on its first pictures.

    Args:
        config: of stage train.

    Returns:
        The rates; the weights are fresh, which takes as long as with trained ones.
    """
    device = prepare(config)
    train, measured = load_training_data(config["folders"]["data"], **config["data"])
    network = build(config["model"])
    layers = _layers(network, train)
    few = measured.part(0, TIMED_PICTURES)
    network.to(device)
    errors(network, few.part(0, 1))
    measure = _time(lambda: errors(network, few)) / len(few)
    matrix = torch.randn(TIMED_PRODUCT, TIMED_PRODUCT, device=device)
    product = _time(lambda: float((matrix @ matrix)[0, 0])) / TIMED_PRODUCT**3
    batch = min(TIMED_PICTURES if device.type == "cpu" else config["train"]["batch_size"], len(train))

    def learn(steps: int) -> None:
        recipe = Recipe("sgd", 1e-3, 0.9, 0.0, "constant", batch, steps, "crop_flip")
        fit(network, Training(train, few.part(0, 1), recipe, 0, steps + 1, device.type))

    learn(1)
    step = max(_time(lambda: learn(1 + TIMED_STEPS)) - _time(lambda: learn(1)), 0.0) / TIMED_STEPS
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Rates(measure, step / batch, product, layers, parameters, len(measured))


@torch.no_grad()
def _layers(network: nn.Module, train: Split) -> list[Layer]:
    """The layers' shapes, and how many positions of a picture each one sees."""
    found: list[Layer] = []

    def note(module: Prunable, _: object, output: torch.Tensor) -> None:
        rows, inputs = matrix_shape(module)
        found.append(Layer(rows, inputs, output.numel() // rows))

    handles = [module.register_forward_hook(note) for module in prunable_layers(network).values()]
    network.eval()(train[:1][0])
    for handle in handles:
        handle.remove()
    return found


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
