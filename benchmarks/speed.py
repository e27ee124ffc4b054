"""What takes time, each against a floor or a plain reference measured in the same run: reports/speed.md and .csv.

    python benchmarks/speed.py [--run runs/lenet300/seed0] [--data data] [--only collect] [--out reports]

Every row is a ratio of two times that are taken in turns, the shortest of several each, alone on the machine. A ratio
that is more than `WORSE` times the committed one is named at the end, and the command then fails.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from common import arguments, load_layer, machine, matrix_rate, seconds
from torch import nn

import lobs
from lobs.allocation.sharing import Sharing
from lobs.calibration import accumulator
from lobs.layers.matrix import input_samples
from lobs.layers.network import prunable_layers
from lobs.solvers import make
from lobs.solvers.hessian import damp
from lobs_paper.data.splits import load_split
from lobs_paper.files import load_tensors, write_csv, write_text
from lobs_paper.networks.cifarnet import CifarNet
from lobs_paper.networks.efficientnet_lite0 import efficientnet_lite0
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.networks.mlpnet import MLPNet
from lobs_paper.networks.resnet20 import ResNet20
from lobs_paper.networks.vit import ViT
from lobs_paper.report.markdown import markdown

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from oracles import plain_row

WORSE = 1.3
REPEATS = 3
REFERENCE_ROWS = 3
COLUMNS = ("what", "seconds", "against", "seconds_against", "ratio", "aim")
# name -> channels in and out, kernel, groups, height and width of the inputs, images, largest ratio wished for
CONVOLUTIONS = {
    "VGG-16 conv1_2": (64, 64, 3, 1, 224, 16, 0.45),
    "VGG-16 conv3_2": (256, 256, 3, 1, 56, 16, 0.45),
    "VGG-16 conv5_1": (512, 512, 3, 1, 14, 64, 0.45),
    "ResNet-50 layer1 conv1": (256, 64, 1, 1, 56, 32, 2),
    "ResNet-50 layer1 conv2": (64, 64, 3, 1, 56, 64, 0.45),
    "ResNet-50 layer3 conv1": (1024, 256, 1, 1, 14, 64, 2),
    "ResNet-50 layer4 conv2": (512, 512, 3, 1, 7, 256, 0.45),
    "ResNet-20 layer1": (16, 16, 3, 1, 32, 512, 2),
    "ResNet-20 layer3": (64, 64, 3, 1, 8, 1024, 0.45),
    "depthwise": (192, 192, 3, 192, 28, 64, 2),
}
NOTE = """
Each row: seconds of what is measured, seconds of what it is compared with, and their ratio, taken in turns in one run
on {machine} (PyTorch {version}). Made by benchmarks/speed.py.
"""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: is measured.
        task: does it.
        against: what it is compared with.
        reference: does that, or its seconds where they are computed.
        aim: the largest ratio wished for.
        repeats: runs of each, in turns.
    """

    what: str
    task: Callable[[], object]
    against: str
    reference: Callable[[], object] | float
    aim: float
    repeats: int = REPEATS

    def measured(self) -> dict[str, object]:
        """Both times, the shortest of some runs in turns."""
        best = [float("inf"), float("inf") if callable(self.reference) else self.reference]
        for _ in range(self.repeats):
            best[0] = min(best[0], seconds(self.task, repeats=1))
            if callable(self.reference):
                best[1] = min(best[1], seconds(self.reference, repeats=1))
        shown = (f"{value:.3g}" for value in best)
        values = (self.what, next(shown), self.against, next(shown), f"{best[0] / best[1]:.2f}", f"{self.aim:g}")
        return dict(zip(COLUMNS, values, strict=True))


def main() -> int:
    """Measure, compare with the committed ratios, write.

    Returns:
        How many ratios have become worse.
    """
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    options = parser.parse_args()
    store = options.out / "speed.csv"
    before = {row["what"]: float(row["ratio"]) for row in csv.DictReader(store.open())} if store.exists() else {}
    rows = []
    for kind in (solving, collecting, convolving, going_through, sharing_out):
        for row in kind(options):
            if options.only in row.what:
                rows.append(row.measured())
                print(rows[-1], flush=True)
    worse = [row for row in rows if float(str(row["ratio"])) > WORSE * before.get(str(row["what"]), float("inf"))]
    for row in worse:
        print(f"{row['what']}: {row['ratio']} times {row['against']}, committed {before[str(row['what'])]:.2f}")
    if not options.only:
        write_csv(store, rows, COLUMNS)
        note = NOTE.strip().format(machine=machine(), version=torch.__version__.partition("+")[0])
        table = markdown(pd.DataFrame(rows, dtype=str), left=["what", "against"])
        write_text(options.out / "speed.md", f"# What takes time\n\n{note}\n\n{table}\n")
    return len(worse)


def solving(options) -> Iterator[Row]:
    """Exact OBS on a trained layer, against its floor: 2/3 d^3 operations a row at the rate of a matrix product."""
    weight, statistics = load_layer(options.run, options.layer)
    rows, size = weight.shape
    layer = f"exact OBS, whole path of {rows} x {size}"
    for precision in ("float64", "float32"):
        solver = make("exact_obs", precision=precision)
        solver(weight[:2], statistics)  # compiled
        floor = rows * 2 / 3 * size**3 / matrix_rate()
        yield Row(
            f"{layer}, {precision}", partial(solver, weight, statistics), "its operations as a product", floor, 2.2
        )
    hessian = damp(statistics)
    scaled = (weight[:, hessian.alive].double() * hessian.scale).numpy()[:REFERENCE_ROWS]
    inverse, quota = hessian.inverse.double().numpy(), len(hessian.alive) - statistics.bias

    def plain() -> None:
        for row in scaled:
            plain_row(row, inverse, quota)

    few = partial(make("exact_obs"), weight[:REFERENCE_ROWS], statistics)
    yield Row(f"exact OBS, {REFERENCE_ROWS} rows", few, "rank-1 downdates in NumPy", plain, 0.05)
    path = make("exact_obs", refine=True)(weight, statistics)
    yield Row(
        "refine, first count at 20%",
        lambda: path.at(path.count_for(0.2)),
        "the whole path without it",
        partial(make("exact_obs"), weight, statistics),
        3,
    )


def collecting(options) -> Iterator[Row]:
    """Statistics of whole networks."""
    images = load_split(options.data, "mnist", "train")
    batches = [batch for batch, _ in images.batches(1000)]
    model = LeNet300().eval()
    inputs = layer_inputs(model, batches)

    def floor() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)
        for samples in inputs:
            samples.mT @ samples

    yield Row(
        f"collect, LeNet-300-100, {len(images)} images",
        partial(lobs.collect_statistics, model, batches),
        "forward pass and bare products",
        floor,
        1.5,
    )
    from torchvision.models import vgg16

    networks = {
        "ResNet-20, 500 images of 32 x 32": (ResNet20(), torch.randn(500, 3, 32, 32), 0.5),
        "VGG-16, 16 images of 224 x 224": (vgg16(weights=None), torch.randn(16, 3, 224, 224), 0.4),
    }
    for name, (network, pictures, aim) in networks.items():
        names = [key for key, layer in prunable_layers(network).items() if isinstance(layer, nn.Conv2d)]
        task = partial(lobs.collect_statistics, network.eval(), list(pictures.split(100)), names)
        yield Row(f"collect, convolutions of {name}", task, "every layer unfolded", partial(unfolded, task), aim)


def unfolded(task: Callable[[], object]) -> None:
    """The same without shifted products."""
    pays = accumulator.shifts_pay
    accumulator.shifts_pay = lambda windows: False
    try:
        task()
    finally:
        accumulator.shifts_pay = pays


@torch.no_grad()
def convolving(options) -> Iterator[Row]:
    """Each convolution alone, its images in two batches."""
    for name, (channels, out, kernel, groups, size, images, aim) in CONVOLUTIONS.items():
        torch.manual_seed(0)
        layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)
        batches = torch.randn(images, channels, size, size).relu().chunk(2)
        network = nn.Sequential(layer).eval()
        inputs = [samples.contiguous() for batch in batches for samples in input_samples(layer, batch)]

        def floor(network=network, batches=batches, inputs=inputs) -> None:
            with torch.no_grad():
                for batch in batches:
                    network(batch)
            for samples in inputs:
                samples.mT @ samples

        collect = partial(lobs.collect_statistics, network, batches)
        yield Row(f"collect, {name}", collect, "forward pass and bare unfolded product", floor, aim)


def going_through(options) -> Iterator[Row]:
    """Pruning front to back and shared budgets, against the collection of statistics; from inputs to a network."""
    images = load_split(options.data, "mnist", "train")
    batches = [batch for batch, _ in images.batches(1000)]
    model = LeNet300().eval()
    model.load_state_dict(load_tensors(options.run / "train" / "model.safetensors", "lobs train"))
    statistics = lobs.collect_statistics(model, batches)
    collect = partial(lobs.collect_statistics, model, batches)
    pruned = partial(lobs.prune, model, statistics, "exact_obs", density=0.05, batches=batches)
    ways = {
        "one shot": {"allocation": "relative"},
        "sharing out, global": {"allocation": "global"},
        "in sequence": {"sequential": True},
        "in sequence, global": {"sequential": True, "allocation": "global"},
        "biases corrected": {"correct": "bias"},
    }
    for name, way in ways.items():
        yield Row(f"prune LeNet-300-100, {name}", partial(pruned, **way), "collecting its statistics", collect, 3)
    network = efficientnet_lite0().eval()
    names = [name for name in prunable_layers(network) if "project" in name or "expand" in name]
    whole = partial(lobs.prune, network, method="exact_obs", density=0.5, allocation="uniform", layers=names)
    pictures = list(torch.randn(32, 3, 224, 224).split(8))
    sequence = partial(whole, batches=pictures, sequential=True)
    at_once = partial(whole, batches=pictures)
    yield Row("prune EfficientNet-Lite0, 32 images, in sequence", sequence, "all layers at once", at_once, 2)


def sharing_out(options) -> Iterator[Row]:
    """A shared budget's decision alone, paths given: gradients, losses, candidates compared; against collecting.

    Of the report's networks, fresh, on noise: with as many images or fewer, which makes collecting cheaper. ResNet-50's
    paths are those of L-OBS, since exact OBS takes long there. Curves that are measured count as sharing out.
    """
    from torchvision.models import resnet50

    networks = {
        "LeNet-300-100": (LeNet300, (60_000, 784), 1000, 0.05),
        "MLPNet": (MLPNet, (60_000, 784), 1000, 0.05),
        "LeNet-5": (LeNet5, (12_000, 1, 28, 28), 250, 0.05),
        "CIFAR-Net": (CifarNet, (4_000, 3, 32, 32), 250, 0.09),
        "ResNet-20": (ResNet20, (2_000, 3, 32, 32), 250, 0.1),
        "ViT": (ViT, (12_000, 1, 28, 28), 1000, 0.2),
        "EfficientNet-Lite0": (efficientnet_lite0, (500, 3, 224, 224), 20, 0.5),
        "ResNet-50": (resnet50, (500, 3, 224, 224), 20, 0.5),
    }
    for name, (make_network, shape, batch, density) in networks.items():
        what = f"sharing out, global, {name}, {shape[0]} inputs"
        if options.only not in what:
            continue
        torch.manual_seed(0)
        network, batches = make_network().eval(), list(torch.randn(shape).split(batch))
        method = "lobs" if name == "ResNet-50" else "exact_obs"
        plan = lobs.plan(network, method=method, batches=batches, held_out=True)
        sharing = Sharing(lobs.Budget(density=density), "global", plan.batches, plan.held_out)

        def decide(sharing=sharing, network=network, paths=plan.paths) -> object:
            for path in paths.values():
                for known in ("_knots", "_measured"):
                    path.__dict__.pop(known, None)
            return sharing.decision(network, paths, {})

        collect = partial(lobs.collect_statistics, network, batches)
        repeats = 1 if shape[-1] == 224 else REPEATS  # half a minute and more
        yield Row(what, decide, "collecting its statistics", collect, 1, repeats)


@torch.no_grad()
def layer_inputs(model: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every layer's samples of every batch, so that only the products are timed."""
    collected = []

    def keep(module: nn.Module, args: tuple) -> None:
        collected.extend(input_samples(module, args[0]))

    handles = [module.register_forward_pre_hook(keep) for module in prunable_layers(model).values()]
    for batch in batches:
        model(batch)
    for handle in handles:
        handle.remove()
    return collected


if __name__ == "__main__":
    sys.exit(main())
