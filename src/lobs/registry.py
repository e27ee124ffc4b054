"""What can be asked for by name. Pure Python, so that a configuration is checked before torch is imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Method:
    """A pruning method: where its solver lives, what it does in one line, which options it takes.

    `needs` names what it reads of `lobs.LayerStatistics` beyond what is always collected, `kinds` the options' types as
    the solver declares them.
    """

    module: str
    solver: str
    line: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def _methods() -> dict[str, Method]:
    """Every class in solvers/ that is a `Solver` and has a ``line``, by its file's name; read without importing it."""
    found = {}
    files = (Path(__file__).parent / "solvers").glob("[a-z]*.py")
    for file in sorted(files, key=lambda file: (file.stem != "lobs", file.stem)):  # the paper's method first
        source = file.read_text(encoding="utf-8")
        for node in ast.parse(source).body if "(Solver):" in source else ():
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Solver" for base in node.bases):
                entries = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
                fixed = {ast.unparse(e.target): e.value for e in entries if "ClassVar" in ast.unparse(e.annotation)}
                plain = [entry for entry in node.body if isinstance(entry, ast.Assign)]
                fixed |= {ast.unparse(target): e.value for e in plain for target in e.targets}
                if "line" in fixed:
                    declared = {ast.unparse(e.target): ast.unparse(e.annotation) for e in entries}
                    kinds = {name: kind for name, kind in declared.items() if name not in fixed}
                    line, needs = (ast.literal_eval(fixed.get(key) or "()") for key in ("line", "needs"))
                    found[file.stem] = Method(
                        f"lobs.solvers.{file.stem}", node.name, line, tuple(kinds), needs, tuple(kinds.values())
                    )
    return found


METHODS: dict[str, Method] = _methods()

ALLOCATIONS: dict[str, str] = {
    "uniform": "the same density in every layer",
    "global": "fisher, fisher_summed or fisher_units, whichever brings the outputs nearest; without batches relative",
    "relative": "equal slopes of the layers' relative errors: the next weight leaves where it hurts its layer least",
    "theorem": "equal slopes of the terms of Theorem 3.2's bound; needs the model",
    "fisher": "equal slopes of error times the loss's curvature in the layer's outputs; needs model and batches",
    "fisher_summed": "the same for errors that are alike at all positions of an image; likewise",
    "fisher_units": "the same with a weight for every unit, which orders the weights within a layer, too; likewise",
    "measured": "each layer pruned alone, the change of the network's outputs measured; needs model and batches",
    "measured_joint": "fisher's shares, changed while the whole pruned network gets better; needs model and batches",
}

# Allocations that run the network on calibration images.
MEASURING_ALLOCATIONS = ("fisher", "fisher_summed", "fisher_units", "measured", "measured_joint")
# What `global` chooses from where there are such images, beside `uniform`; without them it is `relative`.
GLOBAL_CANDIDATES = ("fisher", "fisher_summed", "fisher_units")

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
