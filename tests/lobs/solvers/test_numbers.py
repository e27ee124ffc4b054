"""Every solver on random layers of all sorts: no NaN, exact counts, and errors that are what they are said to be.

`LOBS_RANDOM_LAYERS` sets how many layers every row of solver and options gets, each layer its own; with 80 these are
2,000 layers in a minute.
"""

import os

import pytest
import torch

from helpers.oracles import best_on_support
from helpers.solver_layers import random_layer
from lobs.registry import METHODS
from lobs.solvers import make
from lobs.solvers.hessian import DAMPING, SingularStatisticsError, damp

LAYERS = int(os.environ.get("LOBS_RANDOM_LAYERS", "15"))
# A new method is tested without options at once.
OPTIONS = {
    "lobs": [{}, {"damping": 0.0}, {"resolve": True}, {"alpha": 1e8}, {"pattern": "1:2"}],
    "magnitude": [{}, {"pattern": "1:2"}],
    "exact_obs": [
        {},
        {"damping": 0.0},
        {"precision": "float32"},
        {"precision": "auto", "damping": 1e-7},
        {"refine": True},
        {"refine": True, "damping": 0.0},
        {"group_size": 2},
        {"pattern": "1:2"},
        {"block": 2},
    ],
    "sparsegpt": [{}, {"damping": 0.0}, {"block_size": 2}, {"pattern": "1:2"}],
    "net_trim": [{"iterations": 20, "bisections": 3}, {"iterations": 20, "resolve": True}],
}
CASES = [(name, options) for name in METHODS for options in OPTIONS.get(name, [{}])]
# How far a reported error may be from the measured one, relative to it: what `precision` and `damping` promise.
CLOSE, CLOSE_FLOAT32 = 2e-3, 2e-2
# In units of what rounding weights, and products of inputs that cancel, can add to an error.
ROUNDED = 1000


def sizes(values, inputs, damping):
    """By Cauchy and Schwarz an upper bound of what these weights give: rounding errors are relative to it."""
    scales = (inputs.square().mean(1) + torch.tensor(damping, dtype=torch.float64)[:, None]).sqrt()
    return float((values.double().abs().unflatten(0, (len(inputs), -1)) @ scales[..., None]).square().sum())


def measured(change, inputs, damping):
    """||dW X||^2 / n + lambda ||dW||^2 of all groups, from the samples."""
    changes = change.double().unflatten(0, (len(inputs), -1))
    damped = (torch.tensor(damping, dtype=torch.float64)[:, None, None] * changes.square()).sum()
    return float((inputs @ changes.mT).square().sum() / inputs.shape[1] + damped)


def least(weight, support, inputs, damping):
    """What the best weights on a mask leave, by least squares on the samples."""
    rows = len(weight) // len(inputs)
    total = 0.0
    for row, (values, kept) in enumerate(zip(weight.double().numpy(), support.numpy(), strict=True)):
        own = inputs[row // rows].numpy()
        total += best_on_support(values, own, kept.nonzero()[0].tolist(), damping[row // rows])
    return total


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_numbers_are_what_they_are_said_to_be(name, options):
    refused = 0
    for number in range(LAYERS):
        seed = CASES.index((name, options)) * 10_000 + number
        weight, inputs, statistics = random_layer(seed)
        if statistics.features % 2 and {"block", "pattern"} & options.keys():
            continue
        try:
            path = make(name, **options)(weight, statistics)
            check(path, inputs, options, f"layer {seed}")
        except SingularStatisticsError as error:
            assert options.get("damping", 1) < 1e-4 or {"alpha", "precision"} & options.keys(), f"{seed}: {error}"
            refused += 1
    assert refused <= LAYERS * 0.8, "next to nothing was tested"


def check(path, inputs, options, layer):
    method = type(path.solver).__name__
    # Such a curve includes the damping; one of several groups of inputs is measured.
    exact = method == "ExactOBS" and options.get("group_size", 8) >= path.statistics.features
    best = method == "ExactOBS" or "resolve" in options
    damping = [part.damping for part in getattr(path, "_paths", [path])]
    if len(damping) < len(inputs):  # one program for all groups
        damping = [damp(path.statistics.group(i), options.get("damping", DAMPING)).damping for i in range(len(inputs))]
        damping = [part * (path.damping > 0) for part in damping]
    close = CLOSE_FLOAT32 if options.get("precision") == "float32" else CLOSE
    weight, bias, free = path.weight, path.statistics.bias, path.free
    curve = path.layer_error()
    assert curve.isfinite().all() and (curve.diff() >= 0).all(), layer
    counts = {0, 1, free, free + 1, path.total // 2, path.total - 1, path.total}
    for count in sorted(count for count in counts if 0 <= count <= path.total):
        where = f"{layer} at {count} of {path.total}"
        pruned, mask = path.at(count)
        assert pruned.dtype == weight.dtype and pruned.isfinite().all(), where
        kept = mask[:, : path.statistics.features]
        if path.removes_units:
            assert torch.equal(kept, path.kept(count) & ~path.zeros), where
        else:
            assert int((~kept).sum()) == count and torch.equal(kept, path.kept(count)), where
            assert not bias or mask[:, -1].all(), where
        assert not pruned[~mask].any() and not pruned[:, : kept.shape[1]][path.zeros].any(), where
        rounding = ROUNDED * torch.finfo(weight.dtype).eps ** 2 * sizes(weight.abs() + pruned.abs(), inputs, damping)
        rounding += ROUNDED * 2.3e-16 * sizes(pruned.double() - weight.double(), inputs, damping)
        plain, damped = (measured(pruned.double() - weight.double(), inputs, d) for d in ([0.0] * len(inputs), damping))
        assert path.measured_error(pruned) == pytest.approx(plain, rel=1e-6, abs=rounding), where
        reported, found = path.layer_error(count), damped if exact else plain
        assert reported >= found * (1 - close) - rounding, f"{where}: {reported} reported, {found} measured"
        if count and curve[count] > curve[count - 1] and "refine" not in options:
            assert reported <= found * (1 + close) + rounding, f"{where}: {reported} reported, {found} measured"
        support = mask & (weight != 0) if not bias else torch.cat([kept & ~path.zeros, mask[:, -1:]], 1)
        optimum = least(weight, support, inputs, damping)
        assert damped >= optimum * (1 - close) - rounding, f"{where}: {damped} measured, {optimum} is the least"
        if best and count > free:
            assert damped <= optimum * (1 + close) + rounding, f"{where}: {damped} measured, {optimum} is the least"
