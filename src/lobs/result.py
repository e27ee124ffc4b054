"""What `lobs.prune` gives back: the network, and an account of what was done to it and what was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lobs.layers.coverage import Unpruned, shown
from lobs.plots import layers_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lobs.repair.refit import Refit


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one layer.

    Attributes:
        name: of the module.
        shape: of its weight.
        density: share of its weights kept (biases are not counted).
        kept: weights kept.
        removed: weights removed.
        error: E = ||Z_hat - Z||_F^2 / n on the dense network's inputs, measured on the weights found. After sequential
            pruning Z_hat comes from the pruned network's inputs (Z stays the dense network's output), so that E counts
            what the layers before did, too. A correction and a refit come later and are not in it.
        relative_error: E over ||Z||_F^2 / n, the share of the layer's output that was lost.
        sensitivity_threshold: the largest L_q removed, None for methods without sensitivities.
        bound_contribution: the layer's term in Theorem 3.2, for the final weights.
        seconds: spent on it.
        damping: lambda added to Psi's diagonal, 0 for methods without.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    kept: int
    removed: int
    error: float
    relative_error: float
    sensitivity_threshold: float | None
    bound_contribution: float
    seconds: float
    damping: float


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A pruned network and how it came about; printed, it is a table.

    A *weight* is an entry of a parameter with two or more axes; biases and the scales of norms are not counted.

    Attributes:
        model: the pruned network.
        masks: per layer a bool tensor in the shape of its weight, True where a weight is kept. Modules that share one
            weight are one layer, under the name of the first.
        density: share of weights kept over all pruned layers.
        layers: one record per layer.
        correction: which correction was made (`lobs.correct`), ``none`` without.
        uncorrected: the biases and batch-norm statistics as they were before a correction was asked for, by the names
            that `state_dict` gives them; empty where none was.
        refit: what a refit of the kept weights did (`lobs.refit`); None where none was made.
        before_refit: what it moved, as it was before, by the names that `state_dict` gives it.
        stages: the budgets that were pruned to, one after the other, where there were several.
        unpruned: the weights of the network that were left alone, by module, with the reason.
        weights: all weights of the network.
        notes: what was approximated or fallen back to on the way, one sentence each.
        shared_by: the allocation that shared the budget out (what ``global`` stood for); None where every layer's share
            was given.
        distance: of the outputs that it looked at: ``kl`` or ``relative``
            (`lobs.calibration.outputs.fitting_distance`).
        compared_allocations: that distance on held-out calibration inputs with each allocation that ``global`` chose
            from.
        held_out: calibration inputs that were held out for comparing or refitting; statistics that the call collected
            itself have not seen them.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    density: float
    layers: list[LayerRecord]
    correction: str = "none"
    uncorrected: dict[str, Tensor] = field(default_factory=dict)
    refit: Refit | None = None
    before_refit: dict[str, Tensor] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    unpruned: list[Unpruned] = field(default_factory=list)
    weights: int = 0
    notes: list[str] = field(default_factory=list)
    shared_by: str | None = None
    distance: str | None = None
    compared_allocations: dict[str, float] = field(default_factory=dict)
    held_out: int = 0

    @property
    def unpruned_share(self) -> float:
        """Share of the network's weights that were left alone."""
        return sum(entry.weights for entry in self.unpruned) / self.weights if self.weights else 0.0

    @property
    def network_density(self) -> float:
        """Share kept of all weights of the network, those that were left alone included."""
        if not self.weights:
            return self.density
        return (sum(record.kept for record in self.layers) + sum(e.weights for e in self.unpruned)) / self.weights

    def plot(self) -> Figure:
        """Every layer's density and relative error as bars.

        Returns:
            A figure of matplotlib: `.savefig("layers.png")` keeps it, notebooks show it.

        Raises:
            ImportError: matplotlib is not installed (``pip install 'lobs[plots]'``).
        """
        return layers_figure(self.layers, self.density)

    def __repr__(self) -> str:
        rows = [("layer", "weights", "density", "relative error")]
        for record in self.layers:
            size = record.kept + record.removed
            rows.append((record.name, f"{size:,}", f"{record.density:.4f}", f"{record.relative_error:.3g}"))
        total = sum(record.kept + record.removed for record in self.layers)
        rows.append(("pruned layers", f"{total:,}", f"{self.density:.4f}", ""))
        if self.unpruned:
            rows.append(("whole network", f"{self.weights:,}", f"{self.network_density:.4f}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        if self.unpruned:
            lines.append(f"not pruned, {100 * self.unpruned_share:.1f}% of all weights: {shown(self.unpruned)}")
        if self.shared_by:
            on = f" on {self.held_out} held-out inputs" if self.held_out and self.compared_allocations else ""
            kind = "kl, as class logits" if self.distance == "kl" else self.distance
            compared = f", outputs compared by {kind}{on}" if self.distance else ""
            tried = ", ".join(f"{name} {value:.3g}" for name, value in self.compared_allocations.items())
            lines.append(f"budget shared out by {self.shared_by}{compared}{f' ({tried})' if tried else ''}")
        if self.uncorrected:
            lines.append(f"corrected: {self.correction}")
        if self.stages:
            lines.append(f"in stages: {', '.join(self.stages)}")
        if self.refit:
            lines.append(str(self.refit))
        return "\n".join(line.rstrip() for line in [f"{type(self.model).__name__}, pruned", *lines, *self.notes])
