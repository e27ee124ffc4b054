"""What can be asked for by name. Pure Python, so that a configuration is checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A pruning method: where its solver lives, what it does in one line, which options it takes.

    `needs` names what it reads of `lobs.calibration.statistics.LayerStatistics` beyond what is always collected.
    """

    module: str
    solver: str
    line: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "lobs": Method(
        "lobs.solvers.lobs",
        "LOBS",
        "L-OBS as published: scores and compensation from one inverse, kept fixed (Dong et al. 2017)",
        ("damping", "alpha", "resolve", "pattern"),
    ),
    "exact_obs": Method(
        "lobs.solvers.exact_obs",
        "ExactOBS",
        "OBS done exactly inside a layer: the inverse is downdated after every removal (Frantar & Alistarh 2022)",
        ("damping", "pattern", "block", "group_size", "refine", "precision"),
    ),
    "magnitude": Method(
        "lobs.solvers.magnitude",
        "Magnitude",
        "smallest absolute weights first, no compensation: the criterion of LWC (Han et al. 2015)",
        ("pattern",),
    ),
    "random": Method(
        "lobs.solvers.random",
        "Random",
        "weights removed in random order, no compensation",
        ("seed", "pattern"),
    ),
    "apoz": Method(
        "lobs.solvers.apoz",
        "ApoZ",
        "whole units by their share of zero activations, with the weights that read them (Hu et al. 2016)",
    ),
    "obd": Method(
        "lobs.solvers.obd",
        "OBD",
        "optimal brain damage: the loss's second derivative times the squared weight (LeCun et al. 1990)",
        ("pattern",),
        ("loss_curvature",),
    ),
    "net_trim": Method(
        "lobs.solvers.net_trim",
        "NetTrim",
        "the sparsest weights that keep a layer's activations, a convex program (Aghasi et al. 2017)",
        ("iterations", "tolerance", "bisections", "resolve"),
        ("inputs_sample",),
    ),
    "wanda": Method(
        "lobs.solvers.wanda",
        "Wanda",
        "|weight| times the input's norm, compared within each output, no compensation (Sun et al. 2023)",
        ("pattern",),
    ),
    "sparsegpt": Method(
        "lobs.solvers.sparsegpt",
        "SparseGPT",
        "columns from left to right in blocks, one Cholesky factor for all rows (Frantar & Alistarh 2023)",
        ("damping", "block_size", "pattern"),
    ),
}

ALLOCATIONS: dict[str, str] = {
    "uniform": "the same density in every layer",
    "global": "the best that can be had from what is given: measured_joint with batches, relative without",
    "relative": "equal slopes of the layers' relative errors: the next weight leaves where it hurts its layer least",
    "theorem": "equal slopes of the terms of Theorem 3.2's bound; needs the model",
    "fisher": "equal slopes of error times the loss's curvature in the layer's outputs; needs model and batches",
    "measured": "each layer pruned alone, the change of the network's outputs measured; needs model and batches",
    "measured_joint": "fisher's shares, changed while the whole pruned network gets better; needs model and batches",
}

# What `global` stands for without calibration images, and with them.
ALLOCATION_ALIASES = {"global": "relative"}
ALLOCATION_WITH_BATCHES = {"global": "measured_joint"}
# Allocations that run the network on calibration images.
MEASURING_ALLOCATIONS = ("fisher", "measured", "measured_joint")

CORRECTIONS: dict[str, str] = {
    "none": "nothing",
    "bias": "mean outputs as in the dense network",
    "batch_norm": "batch-norm statistics of the pruned network",
    "both": "batch norms, then biases",
    "auto": "whichever of these comes closest to the dense network on held-out batches",
}


def unknown_name(kind: str, name: object, known: dict) -> str:
    """The message for a name that is not in a table: what was given and what would be accepted."""
    return f"unknown {kind} {name!r}: accepted are {', '.join(known)}"
