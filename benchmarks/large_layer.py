"""VGG-16's first classifier (25,088 inputs x 4,096 outputs) in 20 GiB: L-OBS scores, weights re-solved on the support.

    python benchmarks/large_layer.py [inputs] [outputs] [density] | tee reports/large_layer.txt

Weights are drawn at random and the statistics come from rectified random features with fewer samples than inputs, as
calibrating on some hundred images gives: speed and memory are those of a trained layer, the errors are not.
"""

from __future__ import annotations

import sys
import time

import torch

import lobs
from lobs.solvers import make
from lobs_paper.stages.stopwatch import peak_memory_mib


def main(features: int = 25088, out: int = 4096, density: float = 0.075) -> None:
    """Print seconds and peak memory after every step."""
    torch.manual_seed(0)
    start = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - start:8.1f} s  {peak_memory_mib() / 1024:6.2f} GiB  {step}", flush=True)

    samples = torch.relu(torch.randn(max(64, features // 12), 512) @ torch.randn(512, features))
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    del samples
    report(f"second moment of {features} inputs and the bias")
    weight = torch.randn(out, features + 1) / features**0.5
    path = make("lobs", resolve=True)(weight, statistics)
    report(f"scores and order of {weight.numel()} weights")
    count = path.count_for(density)
    pruned, mask = path.at(count)
    report(f"weights re-solved on the {density:.1%} kept")
    removed = int((~mask).sum())
    masked = path.measured_error(weight * mask)
    print(f"removed {removed} of {path.removable}, as asked: {removed == count}; damping {path.damping:.3g}")
    print(f"E {path.measured_error(pruned):.4g}; the same mask without re-solving {masked:.4g}")
    report("layer errors")
    for method in ("lobs", "exact_obs"):
        try:
            make(method)(weight, statistics).at(count)
        except ValueError as error:
            print(f"{method} as it is: {error}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*(int(value) for value in given[:2]), *(float(value) for value in given[2:3]))
