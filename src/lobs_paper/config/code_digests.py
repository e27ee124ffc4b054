"""Which of our modules a stage's result depends on: all that it imports, found by reading the code without running it.

DVC does not follow imports. `resolve` writes what is found here, a digest per module, to one small file per stage, and
the stage depends on that file: it runs again when a module that it imports has changed, and for no other.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from lobs.registry import METHODS
from lobs_paper.config.choices import DATASETS

PACKAGES = ("lobs", "lobs_paper")
SOURCES = Path(__file__).parents[2]  # where both packages lie
# Modules that are imported by a name out of a table.
BY_NAME = {
    "lobs.solvers.base": [method.module for method in METHODS.values()],
    "lobs_paper.stages.fetch": list(DATASETS.values()),
    "lobs_paper.networks.build": sorted(
        f"lobs_paper.networks.{file.stem}" for file in (SOURCES / "lobs_paper/networks").glob("[a-z]*.py")
    ),
}
# The road of `lobs` itself (cli, config) is not among a stage's imports: it passes the resolved file on or refuses it.
ENTRY = "lobs_paper.stages.{stage}"


def source_file(module: str, sources: Path = SOURCES) -> Path | None:
    """The file of one of our modules.

    Args:
        module: its dotted name.
        sources: the folder of our packages.

    Returns:
        The path; None for anything that is not ours.
    """
    first, *rest = module.split(".")
    path = sources.joinpath(first, *rest)
    if first not in PACKAGES:
        return None
    if rest and path.with_suffix(".py").exists():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").exists() else None


def imported(module: str, sources: Path = SOURCES) -> set[str]:
    """Our modules that a module imports anywhere, also inside functions, but not for type checkers only.

    Args:
        module: its dotted name.
        sources: the folder of our packages.

    Returns:
        Dotted names.

    Raises:
        ValueError: a relative import, which is not followed here.
    """
    file = source_file(module, sources)
    nodes: list[ast.AST] = [] if file is None else [ast.parse(file.read_text(encoding="utf-8"))]
    names = set(BY_NAME.get(module, []))
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
    # The packages' own __init__ are a lazy table of names and a text, which decide nothing.
    return {name for name in names - {*PACKAGES} if source_file(name, sources)}


def stage_modules(stage: str, sources: Path = SOURCES) -> set[str]:
    """All modules that a stage imports, directly or through others; packages without code are left out.

    Args:
        stage: a stage's name.
        sources: the folder of our packages.

    Returns:
        Dotted names.
    """
    seen: set[str] = set()
    waiting = [ENTRY.format(stage=stage)]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imported(module, sources)
    return {module for module in seen if (file := source_file(module, sources)) and not _bare(file)}


def code_digests(stage: str, sources: Path = SOURCES) -> dict[str, str]:
    """The MD5 of every module that a stage's result depends on.

    Args:
        stage: a stage's name.
        sources: the folder of our packages.

    Returns:
        Digests by the module's name, sorted.
    """
    digests = {}
    for module in sorted(stage_modules(stage, sources)):
        file = source_file(module, sources)
        if file is not None:
            digests[module] = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return digests


def _bare(file: Path) -> bool:
    """Whether a file is a package's ``__init__`` that holds a text alone."""
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.name == "__init__.py" else [ast.Pass()]
    return all(isinstance(node, ast.Expr) for node in body)
