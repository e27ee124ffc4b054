"""Which of our modules a stage's result depends on: all that it imports, found by reading the code without running it.

DVC does not follow imports. `resolve` writes what is found here, a digest per module, to one small file per stage
instance, and the instance depends on that file: it runs again when a module that it imports has changed, and for no
other. Of the networks, data sets and solvers, which are imported by a name in the configuration, it is the chosen ones.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobs.registry import METHODS
from lobs_paper.config.choices import fetcher

PACKAGES = ("lobs", "lobs_paper")
SOURCES = Path(__file__).parents[2]  # the folder of both packages
# The command `lobs` itself (cli, config) is not among a stage's imports: it hands the resolved file on, or refuses it.
ENTRY = "lobs_paper.stages.{stage}"


def chosen_modules(part: Mapping[str, Any]) -> list[str]:
    """The modules that a stage instance imports by name: its network's, its solver's, and that of the data it fetches.

    Args:
        part: of the configuration, as the instance reads it.

    Returns:
        Dotted names, also of modules that are not ours.
    """
    targets = [part["model"]["_target_"]] if "model" in part else []
    if "_target_" in part.get("data", {}):
        targets.append(fetcher(part["data"]))
    solver = part.get("method", {}).get("solver")
    return [target.rpartition(".")[0] for target in targets] + ([METHODS[solver].module] if solver else [])


class Code:
    """The source of our packages; each file is read once.

    Args:
        sources: the folder of our packages.
    """

    def __init__(self, sources: Path = SOURCES) -> None:
        self._sources = sources
        self._imports: dict[str, set[str]] = {}

    def modules(self, stage: str, part: Mapping[str, Any]) -> set[str]:
        """All modules that a stage imports, directly or through others; packages without code are left out.

        Args:
            stage: a stage's name.
            part: of the configuration, as the stage reads it.

        Returns:
            Dotted names.
        """
        seen: set[str] = set()
        waiting = [ENTRY.format(stage=stage), *chosen_modules(part)]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += self.imports(module)
        return {module for module in seen if (file := self.file(module)) and not _bare(file)}

    def digests(self, stage: str, part: Mapping[str, Any]) -> dict[str, str]:
        """The MD5 of every module that a stage's result depends on.

        Args:
            stage: a stage's name.
            part: of the configuration, as the stage reads it.

        Returns:
            Digests by the module's name, sorted.
        """
        digests = {}
        for module in sorted(self.modules(stage, part)):
            file = self.file(module)
            if file is not None:
                digests[module] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        return digests

    def file(self, module: str) -> Path | None:
        """The file of a module; None for anything that is not ours."""
        first, *rest = module.split(".")
        path = self._sources.joinpath(first, *rest)
        if first not in PACKAGES:
            return None
        if rest and path.with_suffix(".py").exists():
            return path.with_suffix(".py")
        return path / "__init__.py" if (path / "__init__.py").exists() else None

    def imports(self, module: str) -> set[str]:
        """Our modules that a module imports anywhere, also inside functions, but not for type checkers only.

        Args:
            module: its dotted name.

        Returns:
            Dotted names.
        """
        if module not in self._imports:
            file = self.file(module)
            names = set() if file is None else _imported_names(file)
            # The packages' own __init__ are a lazy table of names and a text, which decide nothing.
            self._imports[module] = {name for name in names - {*PACKAGES} if self.file(name)}
        return self._imports[module]


def _imported_names(file: Path) -> set[str]:
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    names: set[str] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{file}: line {node.lineno}: a relative import; write the module's whole name")
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return names


def _bare(file: Path) -> bool:
    """Whether a file is a package's ``__init__`` that holds a text alone."""
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.name == "__init__.py" else [ast.Pass()]
    return all(isinstance(node, ast.Expr) for node in body)
