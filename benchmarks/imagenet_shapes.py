"""VGG-16 and ResNet-50 from calibration to pruned network: reports/imagenet_shapes.{json,md}.

    python benchmarks/imagenet_shapes.py resnet50 [--data ../shared/data/imagenet-1000.zip] [--device cuda]

Weights are drawn afresh, images are real: seconds and memory are those of trained networks, errors would mean nothing.
L-OBS scores with the weights re-solved on the support, the same density in every layer.
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lobs
from lobs.solvers import make
from lobs_paper.files import write_json, write_text
from lobs_paper.progress import progress
from lobs_paper.stages.stopwatch import peak_memory_mib

# name -> density, calibration images, minutes that collect and prune may take on 2 CPU cores and on a GPU
NETWORKS = {"vgg16": (0.075, 128, {"cpu": 45, "cuda": 2}), "resnet50": (0.25, 256, {"cpu": 30, "cuda": 2})}
MOST_GIB = 24
# VGG-16's first classifier has some hundred times more inputs than images and is factorised in float32.
DAMPINGS = {"vgg16": 0.01, "resnet50": 0.0001}
SIZES = ("network", "device", "images", "layers", "weights", "damping", "density")
COLUMNS = (*SIZES, "collect", "prune", "both", "core time", "aim", "peak memory")
ARCHIVE = "../shared/data/imagenet-1000.zip"


@dataclass(frozen=True)
class Photographs:
    """Batches of images out of a zip archive, decoded anew in every pass: short side 256, the middle 224 x 224."""

    archive: Path
    images: int
    batch: int

    def __iter__(self) -> Iterator[Tensor]:
        """Batches ``[n, 3, 224, 224]``, normalised as torchvision's networks want it; spread evenly over the names."""
        from PIL import Image
        from torchvision import transforms

        steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        prepare = transforms.Compose([*steps, normalise])
        with zipfile.ZipFile(self.archive) as opened:
            names = sorted(name for name in opened.namelist() if name.lower().endswith((".jpeg", ".jpg", ".png")))
            if len(names) < self.images:
                raise ValueError(f"{self.archive} holds {len(names)} images, fewer than the {self.images} asked for")
            chosen = names[:: len(names) // self.images][: self.images]
            for start in range(0, len(chosen), self.batch):
                decoded = []
                for name in chosen[start : start + self.batch]:
                    with opened.open(name) as file:
                        decoded.append(prepare(Image.open(file).convert("RGB")))
                yield torch.stack(decoded)

    def __len__(self) -> int:
        return -(-self.images // self.batch)


def main() -> None:
    """Measure one network, add it to the JSON file, and write the table of all that are in there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/imagenet-1000.zip"), help="zip of photographs"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, help="calibration images, if not as many as the report's")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--memory", type=float, help="ceiling in GiB on what is held of many layers at once")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(
            f"{options.data} does not exist: give --data, a zip archive with at least some hundred photographs"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device: leave --device out")
    torch.set_num_threads(options.threads)
    result = measure(options)
    path = options.out / "imagenet_shapes.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[f"{options.network}/{options.device}"] = result
    write_json(path, dict(sorted(results.items())))
    write_text(options.out / "imagenet_shapes.md", table(results))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Collect and prune, and what it took."""
    from torchvision import models

    density, images, minutes = NETWORKS[options.network]
    images = options.images or images
    torch.manual_seed(0)
    network = getattr(models, options.network)(weights=None).eval().to(options.device)
    photographs = Photographs(options.data, images, options.batch)
    batches = list(progress("decoding")(photographs, len(photographs)))
    bar = progress("calibrating")

    cpu = time.process_time()
    memory = None if options.memory is None else options.memory * 2**30
    seconds, statistics = timed(lambda: lobs.collect_statistics(network, batches, progress=bar, memory=memory))
    print(f"collect {seconds:.0f} s, {peak_gib(options.device):.2f} GiB", flush=True)
    solver = make("lobs", resolve=True, damping=DAMPINGS[options.network])
    pruning, result = timed(
        lambda: lobs.prune(network, statistics, solver, density=density, progress=spoken, in_place=True, memory=memory)
    )
    print(f"prune {pruning:.0f} s, {peak_gib(options.device):.2f} GiB", flush=True)
    return {
        "network": options.network,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "images": images,
        "layers": len(result.layers),
        "weights": sum(record.kept + record.removed for record in result.layers),
        "density": result.density,
        "collect_seconds": round(seconds, 1),
        "prune_seconds": round(pruning, 1),
        "core_seconds": round(time.process_time() - cpu, 1),
        "peak_gib": round(peak_gib(options.device), 2),
        "target_minutes": minutes[options.device],
        "target_gib": MOST_GIB,
    }


def spoken(names: Iterable[str]) -> Iterator[str]:
    """Say when each layer is done: in a log there is no progress bar."""
    start = time.perf_counter()
    for name in names:
        yield name
        print(f"  {name} {time.perf_counter() - start:.0f} s, {peak_memory_mib() / 1024:.2f} GiB", flush=True)


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result; a GPU's queue is waited for."""
    start = time.perf_counter()
    result = task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_gib(device: str) -> float:
    """The largest memory so far: the process's resident set, or what was allocated on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory_mib() / 1024


def table(results: dict[str, dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "# VGG-16 and ResNet-50: from calibration to the pruned network",
        "",
        "Written by `benchmarks/imagenet_shapes.py`: fresh weights, ImageNet sample, L-OBS scores with the weights",
        "re-solved on the support, the same density in every layer. Core time is what the process got of",
        "all cores: where others compute as well, less than cores times minutes. Memory is the process's resident set,",
        "on a GPU what was allocated there.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for _, row in sorted(results.items()):
        device = f"{row['threads']} CPU cores" if row["device"] == "cpu" else row["device"]
        minutes = (row["collect_seconds"] + row["prune_seconds"]) / 60
        cells = [
            row["network"],
            device,
            row["images"],
            row["layers"],
            f"{row['weights']:,}",
            f"{DAMPINGS[row['network']]:g}",
            f"{row['density']:.2%}",
            f"{row['collect_seconds']:.0f} s",
            f"{row['prune_seconds']:.0f} s",
            f"{minutes:.1f} min",
            f"{row['core_seconds'] / 60:.1f} min",
            f"{row['target_minutes']} min, {row['target_gib']} GiB",
            f"{row['peak_gib']:.1f} GiB",
        ]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
