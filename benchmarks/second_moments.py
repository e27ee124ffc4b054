"""Collecting statistics against its floor: the forward pass and the bare products of the layers' inputs.

    python benchmarks/second_moments.py [--run runs/lenet300/seed0]

Seconds for all training images, the ratio, and how the peak memory moves with the number of images. Then single
convolutions of VGG-16, ResNet-50 and a depthwise one: their bare products take patches that are unfolded already. All
parts of a comparison are timed in turns, and the shortest time of each counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from common import arguments, matrix_rate, seconds
from torch import nn

import lobs
from lobs.layers.matrix import input_samples
from lobs.layers.network import prunable_layers
from lobs_paper.data.splits import load_split
from lobs_paper.networks.build import build
from lobs_paper.stages.stopwatch import peak_memory_mib

BATCH = 1000
REPEATS = 5
# name -> in and out channels, kernel, groups, height and width of the inputs, images
CONVOLUTIONS = {
    "VGG-16 conv3_2": (256, 256, 3, 1, 56, 4),
    "VGG-16 conv5_1": (512, 512, 3, 1, 14, 16),
    "ResNet-50 layer1 conv1": (256, 64, 1, 1, 56, 32),
    "ResNet-50 layer1 conv2": (64, 64, 3, 1, 56, 16),
    "ResNet-50 layer3 conv1": (1024, 256, 1, 1, 14, 64),
    "ResNet-50 layer4 conv2": (512, 512, 3, 1, 7, 64),
    "depthwise": (192, 192, 3, 192, 28, 64),
}
MODEL = {"_target_": "lobs_paper.networks.lenet300.LeNet300"}


def main() -> None:
    """Print the comparison; with ``--images`` only the peak memory of one collection, for a process of its own."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, help="collect this many images and print the peak memory")
    parser.add_argument("--convolutions", action="store_true", help="the convolutions alone, without any data")
    options = parser.parse_args()
    if options.convolutions:
        convolutions()
        return
    images = load_split(options.data, "mnist", "train")
    model = build(MODEL).eval()
    if options.images:
        lobs.collect_statistics(model, (images[start : start + BATCH][0] for start in range(0, options.images, BATCH)))
        print(json.dumps(peak_memory_mib()))
        return
    batches = [batch for batch, _ in images.batches(BATCH)]
    inputs = layer_inputs(model, batches)
    print(f"float32 matrix product: {matrix_rate() / 1e9:.0f} Gop/s, {torch.get_num_threads()} threads")
    with torch.no_grad():
        forward = seconds(lambda: [model(batch) for batch in batches])
        bare = seconds(lambda: [samples.mT @ samples for samples in inputs])
    collect = seconds(lambda: lobs.collect_statistics(model, batches))
    print(f"{len(images)} images: forward {forward:.2f} s, bare products {bare:.2f} s, collect {collect:.2f} s")
    print(f"collect is {collect / (forward + bare):.2f} times their sum (aim: 1.5)")
    for count in (len(images) // 6, len(images)):
        command = [sys.executable, __file__, "--data", str(options.data), "--images", str(count)]
        peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"peak memory with {count} images: {peak:.0f} MiB (the images themselves: {images.images.nbytes >> 20})")

    convolutions()


@torch.no_grad()
def convolutions() -> None:
    """Each convolution alone, its images in two batches."""
    print("\nconvolution               inputs         forward  products   collect  ratio (aim: 2)")
    for name, (channels, out, kernel, groups, size, images) in CONVOLUTIONS.items():
        torch.manual_seed(0)
        bias = name.startswith("VGG")  # the others are followed by a batch norm
        layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=bias)
        batches = torch.randn(images, channels, size, size).relu().chunk(2)
        network = nn.Sequential(layer).eval()
        inputs = [samples.contiguous() for batch in batches for samples in input_samples(layer, batch)]
        tasks = (
            lambda network=network, batches=batches: [network(batch) for batch in batches],
            lambda inputs=inputs: [samples.mT @ samples for samples in inputs],
            lambda network=network, batches=batches: lobs.collect_statistics(network, batches),
        )
        best = [float("inf")] * len(tasks)
        for _ in range(REPEATS):
            best = [min(least, seconds(task, repeats=1)) for least, task in zip(best, tasks, strict=True)]
        forward, bare, collect = best
        shape = f"{images} x {channels} x {size} x {size}"
        milliseconds = "".join(f"{1e3 * value:7.0f} ms" for value in best)
        print(f"{name:23s} {shape:18s}{milliseconds}  {collect / (forward + bare):5.2f}", flush=True)


@torch.no_grad()
def layer_inputs(model: torch.nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every layer's samples of every batch, so that only the products are timed."""
    collected = []

    def keep(module: torch.nn.Module, args: tuple) -> None:
        collected.extend(input_samples(module, args[0]))

    handles = [module.register_forward_pre_hook(keep) for module in prunable_layers(model).values()]
    for batch in batches:
        model(batch)
    for handle in handles:
        handle.remove()
    return collected


if __name__ == "__main__":
    main()
