"""One algorithm per file: pure tensor functions, no module, no file, no configuration."""

from lobs.solvers.base import Solver, make
from lobs.solvers.path import PruningPath

__all__ = ["PruningPath", "Solver", "make"]
