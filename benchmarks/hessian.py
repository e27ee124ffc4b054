"""A layer's whole Hessian by autograd, and its inverse: reports/figure1.csv, which Figure 1 is drawn from.

    python benchmarks/hessian.py [--out reports]

The layer error E = ||Z_hat - Z||_F^2 / n of a small layer (4 units, 6 inputs of ReLUs before it) is differentiated
twice in all its weights at once, in double precision, without any use of the structure that the figure shows. Half of
it is compared with the blocks of inputs' second moments that the library works with. The same numbers on every run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import lobs
from lobs_paper.files import write_csv
from lobs_paper.report.figures import draw_benchmark

UNITS, INPUTS, SAMPLES = 4, 6, 200
COLUMNS = ("row", "column", "unit", "hessian", "inverse")
STEM = "figure1"
# Digits that do not depend on the order in which a machine adds.
DIGITS = 9


def main() -> None:
    """Compute, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    out = parser.parse_args().out
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    inputs = torch.relu(torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64) @ mixing)
    weight = torch.randn(UNITS, INPUTS, generator=generator, dtype=torch.float64)

    def error(theta: torch.Tensor) -> torch.Tensor:
        return (inputs @ (theta.reshape(UNITS, INPUTS) - weight).T).square().sum() / SAMPLES

    hessian = torch.autograd.functional.hessian(error, weight.flatten())
    layer = torch.nn.Linear(INPUTS, UNITS, bias=False, dtype=torch.float64)
    moment = lobs.collect_statistics(torch.nn.Sequential(layer), [inputs])["0"].second_moment
    blocks = torch.block_diag(*[moment.double()] * UNITS)
    print(f"largest difference from the blocks of second moments: {(hessian / 2 - blocks).abs().max():.2g}")
    inverse = torch.linalg.inv(hessian)
    rows = [
        dict(zip(COLUMNS, (i, j, i // INPUTS, *(rounded(m[i, j]) for m in (hessian, inverse))), strict=True))
        for i in range(UNITS * INPUTS)
        for j in range(UNITS * INPUTS)
    ]
    write_csv(out / f"{STEM}.csv", rows, COLUMNS)
    drawing = draw_benchmark(STEM, out)
    if drawing:
        drawing.write(out)


def rounded(value: torch.Tensor) -> float:
    """A number to some digits, without a negative zero."""
    return round(float(value), DIGITS) + 0.0


if __name__ == "__main__":
    main()
