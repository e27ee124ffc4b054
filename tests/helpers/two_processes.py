"""What the two processes of `test_processes` run, in a module that a spawned process can import."""

from __future__ import annotations

import torch
from torch import nn

import lobs

SAMPLES = 40


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)
    )


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 2, 3, 3, generator=generator), torch.arange(n) % 3) for n in (7, 20, 1, 13, 9)]


def share(rank, case):
    own = batches()[rank::2]
    if case == "an empty share" and rank == 1:
        return []
    if case == "a value that is not finite" and rank == 1:
        own[0][0][0] = float("nan")
    return own


def process(rank, folder, cases):
    """One of two processes: collects from its share, case by case, and notes what it gets."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for case in cases:
        options = {"loss": None if case.startswith("a value") else "cross_entropy", "keep_samples": SAMPLES}
        if case == "both":
            options["folder"] = folder / "parts"  # where each process keeps its own
        try:
            statistics = lobs.collect_statistics(network(), share(rank, case), distributed=True, **options)
        except ValueError as error:
            (folder / f"{case}{rank}").write_text(str(error))
        else:
            statistics.save(folder / f"{case}{rank}")
    torch.distributed.destroy_process_group()
