"""The user's own modules that a configuration names: a result must not outlive the code that it was made by.

Found by reading, without running anything: the modules named, and what they import, as far as that is neither Python's
own nor an installed package's. Ours are versioned with the package (`lobs_paper.config.code_digests` follows them).
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from hashlib import md5
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from lobs_paper.config.code_digests import PACKAGES
from lobs_paper.config.own_names import PLACES


def own_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the user's own modules that a stage's configuration names, and of those that they import.

    Args:
        config: of a stage.

    Returns:
        By the modules' names, sorted; comments and layout do not count.
    """
    values = (config.get(group, {}).get(key) for group, key in PLACES)
    waiting = [part for value in values if isinstance(value, str) and "." in value for part in _prefixes(value)]
    seen: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        file = None if name in seen else _own_file(name)
        if file is None:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            seen[name] = md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            continue
        seen[name] = md5(ast.unparse(tree).encode(), usedforsecurity=False).hexdigest()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [part for found in _imports(tree, package) for part in _prefixes(found)]
    return dict(sorted(seen.items()))


def find_here() -> None:
    """Let modules of the working directory be found, as for a script there; the command `lobs` starts elsewhere."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def is_own(file: Path) -> bool:
    """Whether a module's file is neither Python's own nor an installed package's."""
    path = file.resolve()
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    return standard not in path.parents and not {"site-packages", "dist-packages"} & {*path.parts}


def _prefixes(name: str) -> list[str]:
    """A dotted name and all that it lies in, of which some are modules."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _own_file(name: str) -> Path | None:
    """The file of a module of the user's own; None for anything else."""
    first, *rest = name.split(".")
    if first in PACKAGES or first in sys.stdlib_module_names:
        return None
    find_here()
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if folders:
        options = [path for folder in folders for path in _files(folder.joinpath(*rest))]
    else:
        options = [Path(spec.origin)] if spec.origin and not rest else []
    return next((path for path in options if path.suffix == ".py" and path.is_file() and is_own(path)), None)


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.py"), path / "__init__.py"


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            try:
                module = resolve_name(f"{'.' * node.level}{node.module or ''}", package)
            except ImportError:  # above the first package
                continue
            yield from (f"{module}.{alias.name}" for alias in node.names)
