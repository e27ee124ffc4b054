"""Peak memory of L-OBS and Net-Trim on one layer against the number of samples: reports/memory.{csv,svg,png}.

    python benchmarks/memory.py [--run runs/lenet300/seed0] [--layer fc1] [--out reports]

Every point is the largest resident set of a process of its own, less that of one that only imports the library and
loads the network. L-OBS collects the layer's statistics and prunes to one density; Net-Trim keeps all samples and
solves its program for one epsilon in a few iterations, which need the memory of many. (Its search for a density
remembers a solution for every epsilon tried, and needs more.) Images are read from the disk batch by batch, so that
neither holds them otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# No torch up here: on Linux a process's peak is never below that of the process that started it.
if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = (1000, 2000, 5000, 10_000, 20_000, 60_000)
METHODS = ("lobs", "net_trim")
LIMIT_MIB = 8 * 1024
BATCH = 1000
DENSITY = 0.07
MODEL = {"_target_": "lobs_paper.networks.lenet300.LeNet300"}
# glibc then gives every freed block of this size back at once: the peak is that of live memory, the same every time.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072"}
COLUMNS = ("method", "samples", "peak_mib", "baseline_mib", "needed_mib")


def main() -> None:
    """Measure, print and write; with ``--method`` only one point, for a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/lenet300/seed0"), help="folder of a finished run")
    parser.add_argument("--layer", default="fc1", help="layer's name")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    parser.add_argument("--method", choices=("baseline", *METHODS), help="measure one point and print it")
    parser.add_argument("--samples", type=int, default=0)
    options = parser.parse_args()
    from lobs_paper.stages.stopwatch import peak_memory_mib

    if options.method:
        work(options.method, options.samples, options.run, options.layer, options.data)
        print(json.dumps(peak_memory_mib()))
        return
    baseline = peak("baseline", 0, options)
    print(f"baseline {baseline:.0f} MiB", flush=True)
    rows = []
    for method in METHODS:
        needed, before = 0.0, 0
        for samples in SAMPLES:
            if before and needed * samples / before > LIMIT_MIB:
                print(f"{method}: {samples} samples would need more than {LIMIT_MIB} MiB")
                break
            total = peak(method, samples, options)
            needed, before = total - baseline, samples
            rows.append(dict(zip(COLUMNS, (method, samples, total, baseline, round(needed, 1)), strict=True)))
            print(f"{method:8s} {samples:6d} samples: {needed:7.0f} MiB", flush=True)

    from lobs_paper.files import write_csv
    from lobs_paper.report.figures import draw_benchmark

    write_csv(options.out / "memory.csv", rows, COLUMNS)
    drawing = draw_benchmark("memory", options.out)
    if drawing:
        drawing.write(options.out)


def peak(method: str, samples: int, options: argparse.Namespace) -> float:
    """The peak of a fresh process, MiB."""
    paths = [f"--{name}={getattr(options, name)}" for name in ("run", "layer", "data")]
    command = [sys.executable, __file__, f"--method={method}", f"--samples={samples}", *paths]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ALLOCATOR).stdout
    return round(json.loads(printed.splitlines()[-1]), 1)


def work(method: str, samples: int, run: Path, layer: str, data: Path) -> None:
    """Load the network and run the method on one of its layers."""
    import torch

    import lobs
    from lobs.solvers import make
    from lobs_paper.files import load_tensors
    from lobs_paper.networks.build import build

    torch.set_num_threads(1)
    network = build(MODEL).eval()
    network.load_state_dict(load_tensors(run / "train" / "model.safetensors", "lobs train"))
    if method == "baseline":
        return
    kept = samples if method == "net_trim" else 0
    inputs = images(data / "mnist" / "train.safetensors", samples)
    statistics = lobs.collect_statistics(network, inputs, [layer], keep_samples=kept)[layer]
    module = network.get_submodule(layer)
    weight = torch.cat([module.weight, module.bias[:, None]], dim=1).detach()
    # Net-Trim looks at its residuals, which takes memory too, in every tenth iteration.
    solver = make("net_trim", iterations=10, bisections=1) if method == "net_trim" else make("lobs", damping=0.3)
    path = solver(weight, statistics)
    path.at(path.count_for(DENSITY))


def images(path: Path, count: int) -> Iterator[Tensor]:
    """The first images of a safetensors file, batch by batch, without mapping the file into memory."""
    import torch

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["images"]
        file.seek(8 + size + entry["data_offsets"][0])
        _, height, width = entry["shape"]
        for start in range(0, count, BATCH):
            batch = min(BATCH, count - start)
            pixels = torch.frombuffer(bytearray(file.read(batch * height * width)), dtype=torch.uint8)
            yield pixels.reshape(batch, 1, height, width).float() / 255


if __name__ == "__main__":
    main()
