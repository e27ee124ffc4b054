"""Exact OBS on one layer: seconds against the machine's floor and against the plain rank-1 reference.

    python benchmarks/exact_obs.py [--run runs/lenet300/seed0] [--wide]

The floor is 2/3 d^3 operations per row (the trailing inverse's full downdate) at the measured rate of a float32 matrix
product. The reference is tests/helpers/oracles.py, timed on some rows and scaled to all. With --wide the compiled and
the batched implementation are compared on wider layers, a few rows each.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
from common import arguments, load_layer, matrix_rate, seconds

from lobs.solvers import make
from lobs.solvers._kernels import elimination_numba, elimination_torch
from lobs.solvers.hessian import damp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from oracles import plain_row

REFERENCE_ROWS = 3
WIDTHS = {784: 32, 2304: 4, 4608: 2}  # inputs -> rows
PUBLISHED_SECONDS = 305  # the published implementation on LeNet-300-100's first layer, 2 cores (issue 3)


def main() -> None:
    """Print the comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--wide", action="store_true", help="compare the two implementations on wider layers")
    options = parser.parse_args()
    weight, statistics = load_layer(options.run, options.layer)
    rows, size = weight.shape
    hessian = damp(statistics)
    alive = len(hessian.alive)
    start = time.perf_counter()
    for precision in ("float64", "float32"):
        make("exact_obs", precision=precision)(weight[:2], statistics)
    print(f"first call, with compilation or its cache: {time.perf_counter() - start:.1f} s")

    rate = matrix_rate()
    floor = rows * 2 / 3 * size**3 / rate
    print(f"layer {rows} x {size} ({alive} inputs ever non-zero), {torch.get_num_threads()} threads")
    print(f"float32 matrix product: {rate / 1e9:.0f} Gop/s; floor {floor:.2f} s")
    reference = {}
    for precision in ("float32", "float64"):
        dtype = getattr(torch, precision)
        scaled = (weight[:, hessian.alive].double() * hessian.scale).to(dtype).numpy()
        inverse = hessian.inverse.to(dtype).numpy()
        start = time.perf_counter()
        for row in scaled[:REFERENCE_ROWS]:
            plain_row(row, inverse, alive - statistics.bias)
        reference[precision] = (time.perf_counter() - start) / REFERENCE_ROWS * rows
        print(f"plain reference, {precision}: {reference[precision]:.0f} s ({REFERENCE_ROWS} rows, scaled to {rows})")
    for precision in ("float32", "float64"):
        spent = seconds(partial(make("exact_obs", precision=precision), weight, statistics))
        print(
            f"exact_obs, whole path, {precision}: {spent:.2f} s = {spent / floor:.2f} floors, "
            f"{reference[precision] / spent:.0f} times the plain reference's speed; "
            f"{PUBLISHED_SECONDS / spent:.0f} times the published {PUBLISHED_SECONDS} s (another machine's)"
        )
    print(f"rate again: {matrix_rate() / 1e9:.0f} Gop/s")
    if options.wide:
        compare()


def compare() -> None:
    """Seconds per row of the compiled and of the batched implementation, on one thread."""
    torch.set_num_threads(1)
    for width, count in WIDTHS.items():
        samples = torch.randn(2 * width, width)
        moment = (samples.T @ samples / len(samples)).double()
        scale = moment.diagonal().sqrt()
        inverse = torch.linalg.inv(moment / scale / scale[:, None])
        problem = torch.randn(count, width, dtype=torch.float64), inverse, torch.zeros(width, dtype=torch.long)
        quota = torch.tensor([width])
        for dtype in (torch.float32, torch.float64):
            spent = [
                seconds(partial(run, *problem, quota, dtype), repeats=2) / count
                for run in (elimination_numba.eliminate, elimination_torch.eliminate)
            ]
            print(
                f"{width} inputs, {dtype}: compiled {spent[0]:.4f} s, batched {spent[1]:.4f} s per row ({count} rows)"
            )


if __name__ == "__main__":
    main()
