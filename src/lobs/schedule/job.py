"""One network's way from dense to pruned: everything that the schedules need to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from lobs.allocation.allocate import check_names
from lobs.allocation.budget import Budget
from lobs.allocation.sharing import Decision, Sharing
from lobs.base.execution import Execution
from lobs.base.notes import read_note, write_note
from lobs.calibration.statistics import Statistics
from lobs.layers.consumers import Consumer
from lobs.solvers import PruningPath, Solver


@dataclass(frozen=True)
class Job:
    """One pruning call: networks, statistics, method, budget and how it is carried out.

    Attributes:
        dense: the trained network, whose outputs are to be kept; not changed.
        pruned: the network to prune, changed layer by layer: a copy of the dense one, or what an earlier stage left of
            it. To go one shot in a single stage it may be the same object.
        statistics: of its layers before they are changed.
        solver: the method.
        names: of the layers to prune, in the order of their calls.
        sharing: the budget.
        execution: its folder belongs to this job alone.
        sequential: front to back, or all layers from the dense network's inputs.
        stages: the budgets to prune to, one after the other, the sharing's own the last.
        correct: what is corrected afterwards (`lobs.registry.CORRECTIONS`).
        refit: whether the kept weights are refitted in the end, or in how many minibatches; None: where that is
            possible.
        keep_samples: input vectors kept per layer in sequence; None: as many as the statistics hold.
        paths: of its layers where they are known already; in sequence they share the budget out.
        decisions: on the shares, noted as they are made.
        remarks: on what else was decided on the way, likewise.
    """

    dense: nn.Module
    pruned: nn.Module
    statistics: Statistics
    solver: Solver
    names: list[str]
    sharing: Sharing
    execution: Execution
    sequential: bool = False
    stages: Sequence[Budget] = ()
    correct: str = "none"
    refit: bool | int | None = False
    keep_samples: int | None = None
    paths: Mapping[str, PruningPath] | None = None
    decisions: list[Decision] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.sharing.budget.densities is not None:
            check_names(self.sharing.budget.densities, self.names)

    @property
    def beside(self) -> bool:
        """Whether the dense network is needed beside the pruned one."""
        return self.sequential or self.correct != "none" or len(self.stages) > 1 or self.refit is not False

    def decide(self, paths: Callable[[], Mapping[str, PruningPath]], consumers: Mapping[str, Consumer]) -> Decision:
        """How many weights each layer loses; what an interrupted call decided stands.

        Args:
            paths: gives them, where they are needed.
            consumers: of the layers' units, where whole units are removed.

        Returns:
            The decision.
        """
        file = self.file("counts.json")
        decision = None if file is None else _read(file)
        if decision is None:
            decision = self.sharing.decision(self.pruned, paths(), consumers, self.execution.progress, self.dense)
            if file is not None:
                write_note(file, asdict(decision))
        self.decisions.append(decision)
        return decision

    def staged(self, note: str) -> str:
        """A note with the budget that it is about, where there are several."""
        return f"at {self.sharing.budget}: {note}" if len(self.stages) > 1 else note

    def file(self, name: str) -> Path | None:
        """A file in the job's folder, where it has one."""
        return None if self.execution.place is None else self.execution.place / name


def _read(file: Path) -> Decision | None:
    """A decision that was written; None where there is none, or a damaged or older one, which is made again."""
    note = read_note(file)
    if note is None or (note.get("compared") and "uniform" not in note):
        return None
    return Decision(**note)
