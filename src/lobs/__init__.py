"""lobs: prune neural networks with the Layer-wise Optimal Brain Surgeon and what came after it.

The public names below are imported on first use, so that ``import lobs`` is cheap and needs torch only
when something is computed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lobs import layers, solvers
    from lobs.allocation.budget import Budget
    from lobs.base.execution import Execution
    from lobs.bounds import ErrorBound, error_bound, layer_error_bound
    from lobs.calibration.collect import collect_statistics
    from lobs.calibration.statistics import LayerStatistics, Statistics
    from lobs.compaction.compact import CompactResult, compact
    from lobs.compaction.compact_file import load_compact, save_compact
    from lobs.export.accelerate import Accelerated, accelerate
    from lobs.export.onnx import export_onnx
    from lobs.export.semi_structured import SemiStructured, semi_structured
    from lobs.export.sparse import load_sparse, save_sparse
    from lobs.planning import Plan
    from lobs.pruning import layer_paths, methods, plan, prune
    from lobs.repair.correction import correct
    from lobs.repair.masks import KeptMasks, keep_masks
    from lobs.repair.refit import Refit, refit
    from lobs.result import LayerRecord, PruneResult
    from lobs.solvers.hessian import SingularStatisticsError
    from lobs.solvers.path import PruningPath

__version__ = "0.2.0"

_HOME = {
    "collect_statistics": "lobs.calibration.collect",
    "Statistics": "lobs.calibration.statistics",
    "LayerStatistics": "lobs.calibration.statistics",
    "prune": "lobs.pruning",
    "plan": "lobs.pruning",
    "Plan": "lobs.planning",
    "Budget": "lobs.allocation.budget",
    "Execution": "lobs.base.execution",
    "layer_paths": "lobs.pruning",
    "methods": "lobs.pruning",
    "PruneResult": "lobs.result",
    "LayerRecord": "lobs.result",
    "correct": "lobs.repair.correction",
    "refit": "lobs.repair.refit",
    "Refit": "lobs.repair.refit",
    "keep_masks": "lobs.repair.masks",
    "KeptMasks": "lobs.repair.masks",
    "compact": "lobs.compaction.compact",
    "CompactResult": "lobs.compaction.compact",
    "save_compact": "lobs.compaction.compact_file",
    "load_compact": "lobs.compaction.compact_file",
    "save_sparse": "lobs.export.sparse",
    "load_sparse": "lobs.export.sparse",
    "accelerate": "lobs.export.accelerate",
    "Accelerated": "lobs.export.accelerate",
    "export_onnx": "lobs.export.onnx",
    "semi_structured": "lobs.export.semi_structured",
    "SemiStructured": "lobs.export.semi_structured",
    "PruningPath": "lobs.solvers.path",
    "SingularStatisticsError": "lobs.solvers.hessian",
    "error_bound": "lobs.bounds",
    "layer_error_bound": "lobs.bounds",
    "ErrorBound": "lobs.bounds",
}

_ROOMS = ("layers", "solvers")  # their names are public, too

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"lobs.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lobs' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
