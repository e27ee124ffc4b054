"""On a CUDA device: exact OBS, networks from calibration to pruned, 2:4 products, tests marked gpu: reports/gpu.md.

    python benchmarks/gpu.py [--data ../shared/data/imagenet-1000.zip] [--out reports]

Without a device it says so and ends.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import lobs
from lobs.solvers import make
from lobs_paper.files import write_text
from lobs_paper.report.markdown import markdown

PUBLISHED_SECONDS = 305  # the published implementation on LeNet-300-100's first layer, on two CPU cores
BATCHES = (32, 256, 4096)
WIDTH = 4096
NETWORKS = ("vgg16", "resnet50")
MOST_MINUTES = 2


def main() -> str | None:
    """Measure and write the page.

    Returns:
        What is missing, for the exit.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imagenet-1000.zip"), help="photographs")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        return "This machine has no CUDA device: nothing was measured."
    rows = [*exact_obs(), *networks(options.data), *semi_structured()]
    table = markdown(pd.DataFrame(rows, columns=["what", "seconds", "compared with", "ratio"], dtype=str))
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], capture_output=True, text=True)
    summary = tests.stdout.strip().splitlines()[-1] if tests.stdout.strip() else "pytest said nothing"
    made = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}. Made by benchmarks/gpu.py."
    text = f"# On a GPU\n\n{made}\n\n{table}\n\n`pytest -m gpu`: {summary.strip('= ')}\n"
    print(text)
    write_text(options.out / "gpu.md", text)
    return None if tests.returncode == 0 else tests.stdout


def seconds(task: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs, the device's queue waited for."""
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        task()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def row(what: str, spent: float, against: str, reference: float) -> tuple[str, str, str, str]:
    """One line of the table."""
    return what, f"{spent:.3g}", f"{against}, {reference:.3g} s", f"{spent / reference:.2g}"


def exact_obs() -> Iterator[tuple[str, str, str, str]]:
    """A layer of LeNet-300-100's size, against the published code and against its operations as one product."""
    torch.manual_seed(0)
    samples = torch.relu(torch.randn(20000, 400) @ torch.randn(400, 784)).cuda()
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    weight = torch.randn(300, 785, device="cuda")
    square = torch.randn(4096, 4096, device="cuda")
    rate = 2 * 4096**3 / seconds(lambda: square @ square)
    for precision in ("float32", "float64"):
        spent = seconds(lambda precision=precision: make("exact_obs", precision=precision)(weight, statistics))
        yield row(
            f"exact OBS, path of 300 x 785, {precision}", spent, "published code on two CPU cores", PUBLISHED_SECONDS
        )
        yield row(f"the same, {precision}", spent, "its operations as a float32 product", 300 * 2 / 3 * 785**3 / rate)


def networks(data: Path) -> Iterator[tuple[str, str, str, str]]:
    """VGG-16 and ResNet-50, by benchmarks/imagenet_shapes.py in a process of its own."""
    for name in NETWORKS:
        command = [sys.executable, Path(__file__).with_name("imagenet_shapes.py"), name, "--data", data]
        start = time.perf_counter()
        done = subprocess.run([*map(str, command), "--device", "cuda"], capture_output=True, text=True)
        spent = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-500:]}")
        yield row(f"{name}: calibrate and prune, pictures decoded besides", spent, "goal", 60 * MOST_MINUTES)


@torch.no_grad()
def semi_structured() -> Iterator[tuple[str, str, str, str]]:
    """A wide Linear in 2:4 against itself dense, in half precision."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).cuda().half().eval()
    inputs = torch.randn(512, WIDTH, device="cuda", dtype=torch.half)
    wide = copy.deepcopy(model).float()
    pruned = lobs.prune(wide, batches=[inputs.float()], method=make("magnitude", pattern="2:4"), density=0.5)
    sparse = lobs.semi_structured(pruned.model.half()).model
    for batch in BATCHES:
        given = torch.randn(batch, WIDTH, device="cuda", dtype=torch.half)
        spent, dense = (seconds(lambda net=net, given=given: net(given), 20) for net in (sparse, model))
        yield row(f"2:4 product, {WIDTH} x {WIDTH}, batch {batch}", spent, "dense", dense)


if __name__ == "__main__":
    sys.exit(main())
